use proptest::{collection::vec, prelude::*};

use super::*;

fn name() -> impl Strategy<Value = EntryName> {
    "[0-9a-f]{32}".prop_map(|text| text.parse().unwrap())
}

fn versions() -> impl Strategy<Value = Versions> {
    (any::<u16>(), any::<u16>()).prop_map(|(a, b)| Versions::new(a.min(b), a.max(b)))
}

fn request() -> impl Strategy<Value = Request> {
    prop_oneof![
        versions().prop_map(Request::Hello),
        name().prop_map(Request::Put),
        name().prop_map(Request::Update),
        proptest::option::of(name()).prop_map(Request::List),
        name().prop_map(Request::Take),
        name().prop_map(Request::Release),
    ]
}

fn reply() -> impl Strategy<Value = Reply> {
    prop_oneof![
        versions().prop_map(Reply::Greeting),
        (any::<u16>(), any::<u64>())
            .prop_map(|(version, hold_for)| Reply::Welcome { version, hold_for }),
        Just(Reply::Done),
        (vec((name(), any::<u64>()), 0..=PAGE), any::<bool>())
            .prop_map(|(entries, more)| Reply::Page(entries, more)),
        name().prop_map(Reply::Entry),
        (any::<u8>(), "\\PC{0,200}")
            .prop_map(|(code, text)| Reply::Failed(Refusal::from_code(code), text)),
    ]
}

proptest! {
    #[test]
    fn a_request_is_read_as_it_was_written(request in request()) {
        prop_assert_eq!(Request::decode(&request.encode()), Ok(request));
    }

    #[test]
    fn a_reply_is_read_as_it_was_written(reply in reply()) {
        let bytes = reply.encode();
        prop_assert!(bytes.len() <= MAX_FRAME);
        prop_assert_eq!(Reply::decode(&bytes), Ok(reply));
    }

    /// Bytes that are read at all are the only ones that mean what was read.
    #[test]
    fn any_bytes_are_a_frame_or_malformed(kind in 0u8..8, bytes in vec(any::<u8>(), 0..600)) {
        for first in [kind, kind | 128] {
            let bytes = [&[first], &bytes[..]].concat();
            if let Ok(request) = Request::decode(&bytes) {
                prop_assert_eq!(request.encode(), bytes.clone());
            }
            if let Ok(reply) = Reply::decode(&bytes) {
                prop_assert_eq!(reply.encode(), bytes);
            }
        }
    }

    /// Near misses go deeper than noise.
    #[test]
    fn damaged_frames_are_frames_or_malformed(
        request in request(), reply in reply(), at in any::<prop::sample::Index>(),
        to in any::<u8>(), cut in any::<prop::sample::Index>(),
    ) {
        for mut bytes in [request.encode(), reply.encode()] {
            let place = at.index(bytes.len());
            bytes[place] = to;
            bytes.truncate(cut.index(bytes.len() + 1));
            if let Ok(request) = Request::decode(&bytes) {
                prop_assert_eq!(request.encode(), bytes.clone());
            }
            if let Ok(reply) = Reply::decode(&bytes) {
                prop_assert_eq!(reply.encode(), bytes);
            }
        }
    }

    #[test]
    fn two_sides_agree_on_the_newest_version_of_both(a in versions(), b in versions()) {
        let both = (0..=u16::MAX).rev().find(|version| {
            [a, b].iter().all(|side| (side.oldest..=side.newest).contains(version))
        });
        prop_assert_eq!(a.common(b), both);
        prop_assert_eq!(b.common(a), both);
    }
}

#[test]
fn a_full_page_fits_a_frame() {
    let name: EntryName = "0123456789abcdef0123456789abcdef".parse().unwrap();
    let reply = Reply::Page(vec![(name, u64::MAX); PAGE], true);
    assert!(reply.encode().len() <= MAX_FRAME);
}

#[test]
fn a_long_text_is_cut_between_characters() {
    let reply = Reply::Failed(Refusal::Full, "\u{e4}x".repeat(MAX_TEXT));
    let bytes = reply.encode();
    assert!(bytes.len() <= MAX_TEXT + 2);
    assert!(Reply::decode(&bytes).is_ok());
}

#[test]
fn every_refusal_has_a_code_of_its_own() {
    for refusal in Refusal::KNOWN {
        assert_eq!(Refusal::from_code(refusal.code()), refusal);
    }
    assert_eq!(Refusal::from_code(200), Refusal::Other(200));
}

/// What every later version must still understand.
#[test]
fn the_first_frames_have_their_form_for_ever() {
    assert_eq!(Reply::Greeting(Versions::new(1, 2)).encode(), b"\x80s3vkeep\n\x01\x00\x02\x00");
    assert_eq!(Request::Hello(Versions::new(1, 2)).encode(), b"\x01s3vkeep\n\x01\x00\x02\x00");
    assert_eq!(Reply::Failed(Refusal::Version, "no".into()).encode(), b"\x81\x03no");
}
