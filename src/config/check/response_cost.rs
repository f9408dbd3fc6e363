//! Checks costs from responses.

use core::num::NonZeroU32;

use super::Check;
use crate::config::de::units::InvalidValue;
use crate::config::fault::{Code, Position};
use crate::config::file::limits::CostOfResponse;
use crate::limit::ResponseCost;

impl Check<'_> {
    /// Returns the cost that is charged until the response has arrived, and the position of the cost in the response.
    pub(super) fn response_cost(
        &mut self,
        position: Position,
        keys: &CostOfResponse,
    ) -> Option<(NonZeroU32, ResponseCost)> {
        let reserved = self.number(&keys.default, 1..=u32::MAX.into(), 1);
        let reserved = NonZeroU32::new(u32::try_from(reserved).ok()?)?;
        let with_json = !keys.response_json.is_absent();
        self.only_with(&keys.max_size, with_json, "max_size", "response_json");
        if keys.response_header.is_absent() != with_json {
            if !keys.response_header.is_bad() && !keys.response_json.is_bad() {
                let message = "a cost needs one of response_header and response_json";
                let help =
                    "write { response_header: X-Cost }, or { response_json: /usage/total_tokens }";
                self.fault(Code::C106, position, message, help);
            }
            return None;
        }
        if let Some(name) = keys.response_header.get() {
            return Some((reserved, ResponseCost::Header(name.value.0.clone())));
        }
        let pointer = keys.response_json.get()?;
        if !is_pointer(&pointer.value) {
            let help = "write a slash before each name, such as /usage/total_tokens";
            self.wrong(pointer, InvalidValue::new("is not a JSON pointer (RFC 6901)", help));
            return None;
        }
        let max_size = keys.max_size.get().map_or(DEFAULT_SIZE, |size| size.value.0.0);
        if let Some(size) = keys.max_size.get().filter(|_| !(1..=MAX_SIZE).contains(&max_size)) {
            let help = "write 1B to 16MiB: it is held in memory";
            self.fault(Code::C103, size.at, "this size is out of range", help);
        }
        let pointer = pointer.value.as_str().into();
        Some((reserved, ResponseCost::Json { pointer, max_size: max_size as usize }))
    }
}

/// Whether text is a JSON pointer: names after slashes, in which a tilde is followed by 0 or 1.
fn is_pointer(text: &str) -> bool {
    let escapes = text.split('~').skip(1);
    (text.is_empty() || text.starts_with('/'))
        && escapes.into_iter().all(|rest| rest.starts_with(['0', '1']))
}

const DEFAULT_SIZE: u64 = 1024 * 1024;
const MAX_SIZE: u64 = 16 * 1024 * 1024;
