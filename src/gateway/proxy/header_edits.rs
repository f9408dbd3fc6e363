//! Fields that the operator removes, sets and adds.

use http::{HeaderMap, HeaderValue};

use super::identity_headers::Statement;
use crate::config::route::{HeaderEdits, Template, TemplatePart};
use crate::gateway::exchange::Exchange;
use crate::token::Principal;

/// The edits of one direction. First `remove`, then `set`, then `add`.
#[derive(Debug, Default)]
pub(crate) struct HeaderEditor(HeaderEdits);

impl From<HeaderEdits> for HeaderEditor {
    fn from(edits: HeaderEdits) -> Self {
        Self(edits)
    }
}

impl HeaderEditor {
    /// Whether there is nothing to carry out.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.remove.is_empty() && self.0.set.is_empty() && self.0.add.is_empty()
    }

    /// Carries them out. A value that would be empty leaves no field.
    pub(crate) fn apply(
        &self,
        headers: &mut HeaderMap,
        principal: Option<&Principal>,
        exchange: &Exchange,
    ) {
        for name in &self.0.remove {
            headers.remove(name);
        }
        for (name, template) in &self.0.set {
            match fill(template, principal, exchange) {
                Some(value) => headers.insert(name, value),
                None => headers.remove(name),
            };
        }
        for (name, template) in &self.0.add {
            if let Some(value) = fill(template, principal, exchange) {
                headers.append(name, value);
            }
        }
    }
}

fn fill(
    Template(pieces): &Template,
    principal: Option<&Principal>,
    exchange: &Exchange,
) -> Option<HeaderValue> {
    let mut text = String::new();
    for piece in pieces {
        match piece {
            TemplatePart::Text(fixed) => text.push_str(fixed),
            TemplatePart::Claim(path) => {
                let told = principal.and_then(|principal| Statement::about(principal, path));
                text.extend(told.map(Statement::text));
            }
            TemplatePart::ClientIp => text.push_str(&exchange.client.to_string()),
            TemplatePart::RequestId => {
                text.push_str(exchange.request_id.to_str().unwrap_or_default());
            }
        }
    }
    // What the operator wrote stands as it is: only claims come from elsewhere.
    (!text.is_empty()).then(|| HeaderValue::try_from(text).ok())?
}
