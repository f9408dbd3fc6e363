//! The `Date` field of responses (RFC 9110 §6.6.1).

use core::cell::RefCell;

use http::HeaderValue;

use crate::base::clock::Timestamp;

/// Calls `write` with the current date, cached for one tick of the worker; `None` for a time beyond the range of dates.
pub(super) fn with_date<T>(
    tick: u32,
    now: impl FnOnce() -> Timestamp,
    write: impl FnOnce(Option<&HeaderValue>) -> T,
) -> T {
    DATE.with_borrow_mut(|(cached_at, date)| {
        if *cached_at != tick {
            *cached_at = tick;
            *date = formatted(now());
        }
        write(date.as_ref())
    })
}

fn formatted(now: Timestamp) -> Option<HeaderValue> {
    let now = jiff::Timestamp::from_second(i64::try_from(now.as_secs()).ok()?).ok()?;
    let printer = jiff::fmt::rfc2822::DateTimePrinter::new();
    HeaderValue::try_from(printer.timestamp_to_rfc9110_string(&now).ok()?).ok()
}

thread_local! {
    /// The tick at which the date was formatted, and the date.
    static DATE: RefCell<(u32, Option<HeaderValue>)> = const { RefCell::new((0, None)) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_date_is_formatted_once_a_tick() {
        let now = || Timestamp::from_secs(784_111_777);
        let date = with_date(7, now, |date| Some(date?.clone()));
        assert_eq!(date.expect("a date"), "Sun, 06 Nov 1994 08:49:37 GMT");

        assert!(with_date(7, || panic!("the tick has not changed"), |date| date.is_some()));
    }
}
