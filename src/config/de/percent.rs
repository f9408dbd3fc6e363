//! Percentages, each read in no finer unit than its setting has: a finer one is refused, never rounded.

use super::units::{FromScalar, InvalidValue};

/// A share of any precision, 0 to 1, written `20%` or `99.9%`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Percent(pub(crate) f64);

/// A share of so many hundredths of a percent, 0 to 10,000, written `20%` or `0.25%`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct PercentHundredths(pub(crate) u32);

/// A share of so many percent, 0 to 100, written `20%`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct WholePercent(pub(crate) u8);

impl FromScalar for Percent {
    const WANTED: &'static str = "a percentage such as 20%";

    fn parse(text: &str) -> Result<Self, InvalidValue> {
        let wrong = || InvalidValue::new("is not a percentage", "write 0% to 100%");
        let number = text.strip_suffix('%').ok_or_else(wrong)?;
        if !number.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
            return Err(wrong());
        }
        match number.parse::<f64>() {
            Ok(number) if (0.0..=100.0).contains(&number) => Ok(Self(number / 100.0)),
            _ => Err(wrong()),
        }
    }
}

impl FromScalar for PercentHundredths {
    const WANTED: &'static str = Percent::WANTED;

    fn parse(text: &str) -> Result<Self, InvalidValue> {
        let Percent(share) = Percent::parse(text)?;
        if decimal_places(text) > 2 {
            let help = "write two decimal places at most, such as 0.25%";
            return Err(InvalidValue::new("is finer than a hundredth of a percent", help));
        }
        Ok(Self((share * 10_000.0).round() as u32))
    }
}

impl FromScalar for WholePercent {
    const WANTED: &'static str = Percent::WANTED;

    fn parse(text: &str) -> Result<Self, InvalidValue> {
        let Percent(share) = Percent::parse(text)?;
        if decimal_places(text) > 0 {
            let help = "write a whole number, such as 20%";
            return Err(InvalidValue::new("is not a whole percentage", help));
        }
        Ok(Self((share * 100.0).round() as u8))
    }
}

/// Returns the number of decimal places of a percentage, without zeros at the end.
fn decimal_places(text: &str) -> usize {
    let places = text.trim_end_matches('%').split_once('.').map_or("", |(_, places)| places);
    places.trim_end_matches('0').len()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn percentages_stay_within_their_hundred() {
        assert_eq!(Percent::parse("12.5%"), Ok(Percent(0.125)));
        for wrong in ["20", "101%", "-1%", "nan%", "1e1%", "%"] {
            assert!(Percent::parse(wrong).is_err(), "{wrong}");
            assert!(WholePercent::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_percentage_finer_than_its_setting_is_refused() {
        assert_eq!(WholePercent::parse("13.0%"), Ok(WholePercent(13)));
        assert_eq!(PercentHundredths::parse("0.250%"), Ok(PercentHundredths(25)));
        for finer in ["0.4%", "12.5%", "99.99%"] {
            assert!(WholePercent::parse(finer).is_err(), "{finer}");
        }
        for finer in ["0.004%", "12.345%"] {
            assert!(PercentHundredths::parse(finer).is_err(), "{finer}");
        }
    }

    proptest! {
        #[test]
        fn a_percentage_is_read_exactly(whole in 0u32..100, hundredths in 0u32..100, text in "\\PC{0,24}") {
            let read = PercentHundredths::parse(&format!("{whole}.{hundredths:02}%"));
            prop_assert_eq!(read, Ok(PercentHundredths(whole * 100 + hundredths)));
            let _ = WholePercent::parse(&text);
        }
    }
}
