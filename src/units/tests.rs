//! Tables and round trips.

use proptest::prelude::*;
use test_case::test_case;

use super::*;

#[test_case("0", 0)]
#[test_case("1048576", 1 << 20)]
#[test_case("64Mi", 64 << 20; "binary")]
#[test_case("+1Gi", 1 << 30; "plus sign")]
#[test_case("1.5Gi", 3 << 29; "fraction")]
#[test_case("1.1Gi", 1_181_116_007; "fraction is exact and rounds up")]
#[test_case("500M", 500_000_000; "decimal")]
#[test_case("1k", 1000)]
#[test_case("1E", 1_000_000_000_000_000_000; "exa")]
#[test_case("1e6", 1_000_000; "exponent")]
#[test_case("1E6", 1_000_000; "upper exponent is not exa")]
#[test_case("1.5e+3", 1500; "signed exponent")]
#[test_case("25e-1", 3; "negative exponent rounds up")]
#[test_case("1e-99", 1; "a mere fraction is one byte")]
#[test_case("0e99", 0; "zero stays zero")]
#[test_case("0.1", 1)]
#[test_case("1500m", 2; "thousandths")]
#[test_case(".5Ki", 512; "no whole part")]
#[test_case("1.", 1; "no fraction")]
#[test_case("18446744073709551615", u64::MAX; "largest")]
fn a_quantity_is_a_size(text: &str, bytes: u64) {
    assert_eq!(text.parse(), Ok(ByteSize::from_bytes(bytes)));
}

#[test_case(""; "empty")]
#[test_case("."; "point")]
#[test_case("Mi"; "only a suffix")]
#[test_case("-1"; "negative")]
#[test_case("64MB"; "not a suffix")]
#[test_case("64mi"; "lower case")]
#[test_case("64 Mi"; "space")]
#[test_case("1e"; "no exponent")]
#[test_case("1e3Ki"; "exponent and suffix")]
#[test_case("0x10"; "hexadecimal")]
#[test_case("1_000"; "underscore")]
fn another_text_is_no_size(text: &str) {
    assert_eq!(text.parse::<ByteSize>(), Err(UnitError::Size(text.to_owned())));
}

#[test_case("18446744073709551616"; "one more")]
#[test_case("16Ei"; "binary")]
#[test_case("1e400"; "exponent")]
#[test_case("99999999999999999999999999999999999999999"; "beyond 128 bits")]
fn a_size_beyond_64_bits_is_refused(text: &str) {
    assert_eq!(text.parse::<ByteSize>(), Err(UnitError::LargeSize(text.to_owned())));
}

#[test_case(0, "0")]
#[test_case(1000, "1000")]
#[test_case(1024, "1Ki")]
#[test_case(64 << 20, "64Mi"; "mebibytes")]
#[test_case(3 << 29, "1536Mi"; "one and a half gibibytes")]
#[test_case(1 << 60, "1Ei"; "exbibyte")]
fn a_size_prints_its_largest_exact_unit(bytes: u64, text: &str) {
    assert_eq!(ByteSize::from_bytes(bytes).to_string(), text);
}

#[test]
fn a_size_is_text_in_json() {
    let size = ByteSize::mebibytes(64);
    assert_eq!(serde_json::to_string(&size).unwrap(), "\"64Mi\"");
    assert_eq!(serde_json::from_str::<ByteSize>("\"64Mi\"").unwrap(), size);
    assert!(serde_json::from_str::<ByteSize>("\"64 MB\"").is_err());
}

#[test_case("0444", 0o444; "leading zero")]
#[test_case("444", 0o444)]
#[test_case("0", 0)]
#[test_case("0777", 0o777)]
fn octal_text_is_a_mode(text: &str, bits: u16) {
    let mode: Mode = text.parse().unwrap();
    assert_eq!(mode.bits(), bits);
    assert_eq!(mode.to_string(), format!("{bits:04o}"));
}

#[test_case(""; "empty")]
#[test_case("1777"; "sticky bit")]
#[test_case("0o444"; "prefix")]
#[test_case("+444"; "sign")]
#[test_case("888"; "not octal")]
#[test_case("r--r--r--"; "symbolic")]
fn another_text_is_no_mode(text: &str) {
    assert_eq!(text.parse::<Mode>(), Err(UnitError::Mode(text.to_owned())));
}

#[test_case("0", Duration::ZERO)]
#[test_case("0s", Duration::ZERO; "zero seconds")]
#[test_case("60s", Duration::from_mins(1))]
#[test_case("1m30s", Duration::from_secs(90))]
#[test_case("1.5h", Duration::from_mins(90))]
#[test_case("500ms", Duration::from_millis(500))]
#[test_case("2us3\u{b5}s", Duration::from_micros(5); "microseconds")]
#[test_case("1.9ns", Duration::from_nanos(1); "a fraction of a nanosecond is dropped")]
#[test_case(".5s", Duration::from_millis(500); "no whole part")]
fn a_go_duration_is_read(text: &str, duration: Duration) {
    assert_eq!(parse_duration(text), Ok(duration));
}

#[test_case(""; "empty")]
#[test_case("60"; "no unit")]
#[test_case("-1s"; "negative")]
#[test_case("1d"; "days")]
#[test_case("1 m"; "space")]
#[test_case("s"; "no number")]
#[test_case("1m30"; "unit missing at the end")]
fn another_text_is_no_duration(text: &str) {
    assert_eq!(parse_duration(text), Err(UnitError::Duration(text.to_owned())));
}

#[test_case("2562048h"; "one part")]
#[test_case("2562047h2562047h2562047h"; "a sum")]
fn a_duration_beyond_go_is_refused(text: &str) {
    assert_eq!(parse_duration(text), Err(UnitError::LongDuration(text.to_owned())));
}

#[test_case(Duration::ZERO, "0s"; "zero")]
#[test_case(Duration::from_secs(90), "1m30s"; "minutes and seconds")]
#[test_case(Duration::from_hours(24), "24h"; "a day")]
#[test_case(Duration::from_millis(1500), "1s500ms"; "fraction")]
fn a_duration_prints_in_the_same_grammar(duration: Duration, text: &str) {
    assert_eq!(format_duration(duration), text);
}

#[test_case("never", Refresh::Never)]
#[test_case("1m", Refresh::Every(Duration::from_mins(1)))]
fn a_refresh_is_never_or_an_interval(text: &str, refresh: Refresh) {
    assert_eq!(text.parse(), Ok(refresh));
    assert_eq!(refresh.to_string(), text);
}

#[test_case("0s"; "zero")]
#[test_case("Never"; "upper case")]
#[test_case("60"; "no unit")]
fn another_text_is_no_refresh(text: &str) {
    assert_eq!(text.parse::<Refresh>(), Err(UnitError::Refresh(text.to_owned())));
}

#[test]
fn a_message_shows_what_to_write() {
    assert_eq!(
        "64MB".parse::<ByteSize>().unwrap_err().to_string(),
        "\"64MB\" is not a size; write bytes or a Kubernetes quantity, such as \"64Mi\""
    );
}

proptest! {
    #[test]
    fn sizes_survive_their_text(bytes: u64) {
        let size = ByteSize::from_bytes(bytes);
        prop_assert_eq!(size.to_string().parse(), Ok(size));
    }

    #[test]
    fn durations_survive_their_text(nanoseconds in 0..=i64::MAX.unsigned_abs()) {
        let duration = Duration::from_nanos(nanoseconds);
        prop_assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
    }

    #[test]
    fn no_text_makes_a_parser_panic(text in "[-+.0-9a-zA-Z\u{b5} ]{0,60}") {
        drop(text.parse::<ByteSize>());
        drop(text.parse::<Mode>());
        drop(text.parse::<Refresh>());
    }
}
