use proptest::prelude::*;
use test_case::test_case;

use super::*;
use crate::certificate::samples::Pair;

const PEM: &str = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n";
const SSE_KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

fn parse(secrets: &[(&str, &str)]) -> Result<VolumeSecrets, Problems> {
    let owned = secrets.iter().map(|(name, value)| ((*name).into(), (*value).into()));
    VolumeSecrets::parse(owned.collect())
}

fn message(secrets: &[(&str, &str)]) -> String {
    parse(secrets).unwrap_err().to_string()
}

#[test_case("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"; "aws")]
#[test_case("accessKeyID", "secretAccessKey", "sessionToken"; "camel case")]
#[test_case("access_key", "secret_key", "session_token"; "snake case")]
#[test_case("accesskey", "secretkey", "sessiontoken"; "lower case")]
#[test_case("AWS_ACCESS_KEY_ID", "secretkey", "AWS_SESSION_TOKEN"; "mixed")]
fn every_spelling_is_known(id: &str, secret: &str, token: &str) {
    let keys = parse(&[(id, "minio"), (secret, "minio123"), (token, "t")]).unwrap().keys.unwrap();
    assert_eq!(keys.access_key_id, "minio");
    assert_eq!(keys.secret_access_key.expose_secret(), "minio123");
    assert_eq!(keys.session_token.unwrap().expose_secret(), "t");
}

#[test]
fn the_secret_that_people_have_works_unchanged() {
    let decoded = |text| String::from_utf8(STANDARD.decode(text).unwrap()).unwrap();
    let (id, secret) = (decoded("bWluaW8="), decoded("bWluaW8xMjM="));
    let keys = parse(&[("accesskey", &id), ("secretkey", &secret)]).unwrap().keys.unwrap();
    assert_eq!(keys.access_key_id, "minio");
    assert_eq!(keys.secret_access_key.expose_secret(), "minio123");
    assert!(keys.session_token.is_none());
}

#[test]
fn other_keys_are_passed_over() {
    let other = [("password", "\n"), ("tls.pem", ""), ("csi.storage.k8s.io/x", "{}")];
    let secrets = parse(&other).unwrap();
    assert!(secrets.keys.is_none() && secrets.sse_customer_key.is_none());
    assert!(secrets.ca_bundle.is_none() && secrets.client_certificate.is_none());
}

#[test]
fn spellings_may_repeat_but_not_differ() {
    let agreed = [("accesskey", "a"), ("access_key", "a"), ("secretkey", "s")];
    assert!(parse(&agreed).is_ok());
    let torn = [("accesskey", "aaaa"), ("access_key", "bbbb"), ("secretkey", "s")];
    assert_eq!(
        message(&torn),
        "Secret key accesskey: differs from access_key, which means the same; remove one"
    );
}

#[test_case("accesskey", "secretkey"; "id alone")]
#[test_case("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"; "secret alone")]
#[test_case("sessionToken", "an access key and a secret key"; "token alone")]
fn half_a_credential_is_none(name: &str, missing: &str) {
    assert_eq!(
        message(&[(name, "hunter2")]),
        format!("Secret key {name}: stands alone; add {missing}")
    );
}

#[test_case("accesskey", "hunter2\n", "echo -n"; "newline in the id")]
#[test_case("secretkey", "hunter2\n", "echo -n"; "newline in the secret")]
#[test_case("AWS_SESSION_TOKEN", " hunter2", "echo -n"; "blank before the token")]
#[test_case("AWS_SESSION_TOKEN", "hun ter2", "printable ASCII"; "blank inside the token")]
#[test_case("accesskey", "", "must not be empty"; "empty id")]
#[test_case("secretkey", "", "must not be empty"; "empty secret")]
#[test_case("sseCustomerKey", "aHVudGVyMg==", "exactly 32 bytes, and is of 7"; "short key")]
#[test_case("sseCustomerKey", "hunter2?", "base64 form of exactly 32 bytes"; "no base64")]
#[test_case("sseCustomerKey", "hunter2\n", "echo -n"; "newline in the key")]
#[test_case("ca.crt", "hunter2", "must contain a certificate in PEM form"; "no certificate")]
#[test_case("ca.crt", "", "must not be empty"; "empty bundle")]
#[test_case("ca.crt", PEM, "number 1 of it cannot be read"; "a bundle of nothing")]
#[test_case("tls.crt", "hunter2", "stands alone; add tls.key"; "a certificate alone")]
#[test_case("tls.key", "hunter2", "stands alone; add tls.crt"; "a key alone")]
fn bad_values_are_explained_and_not_shown(name: &str, value: &str, text: &str) {
    let mut secrets = HashMap::from([("accesskey", "a"), ("secretkey", "s")]);
    secrets.insert(name, value);
    let secrets: Vec<_> = secrets.into_iter().collect();
    let message = message(&secrets);
    assert!(message.starts_with(&format!("Secret key {name}: ")), "{message}");
    assert!(message.contains(text), "{message}");
    assert!(!message.contains("hun"), "{message}");
}

#[test]
fn all_problems_are_told_at_once() {
    let text = message(&[("accesskey", "a\n"), ("sseCustomerKey", "x"), ("ca.crt", "y")]);
    for name in ["accesskey: must not", "accesskey: stands alone", "sseCustomerKey", "ca.crt"] {
        assert!(text.contains(&format!("Secret key {name}")), "{text}");
    }
}

#[test]
fn a_customer_key_makes_its_headers() {
    let key = parse(&[("sseCustomerKey", SSE_KEY)]).unwrap().sse_customer_key.unwrap();
    assert_eq!(key.base64(), SSE_KEY);
    assert_eq!(key.base64_md5(), "tP/LI3N87DFaSk0aoqYgzg==");
    let other = SseCustomerKey::parse(&STANDARD.encode([7; 32])).unwrap();
    assert_ne!(key.digest(), other.digest());
    assert_eq!(key.digest(), key.clone().digest());
}

#[test]
fn a_bundle_keeps_its_newlines() {
    let pem = Pair::ecdsa().certificate;
    let secrets = parse(&[("ca.crt", &pem)]).unwrap();
    assert_eq!(secrets.ca_bundle.unwrap().pem(), pem.as_bytes());
}

#[test]
fn a_pair_makes_a_client_certificate() {
    let pair = Pair::ecdsa();
    let secrets = [("tls.crt", pair.certificate.as_str()), ("tls.key", &pair.key)];
    assert!(parse(&secrets).unwrap().client_certificate.is_some());
}

#[test]
fn a_bad_pair_names_the_half_that_is_wrong() {
    let (pair, other) = (Pair::ecdsa(), Pair::ecdsa());
    let of = |certificate: &str, key: &str| message(&[("tls.crt", certificate), ("tls.key", key)]);
    let text = of(&pair.certificate, &other.key);
    assert!(text.starts_with("Secret key tls.key: does not belong to the certificate"), "{text}");
    let text = of(PEM, &pair.key);
    assert!(text.starts_with("Secret key tls.crt: must begin with the owner's"), "{text}");
    let text = of("hunter2", "hunter3");
    assert!(text.contains("Secret key tls.crt: must contain a certificate"), "{text}");
    assert!(text.contains("Secret key tls.key: must hold one private key"), "{text}");
    assert!(!text.contains("hunter"), "{text}");
    let text = of("", "");
    assert!(text.contains("tls.crt: must not be empty") && text.contains("tls.key: must not"));
}

#[test]
fn debug_shows_no_secret() {
    let pair = Pair::ecdsa();
    let secrets = parse(&[
        ("accesskey", "AKIAIOSFODNN7EXAMPLE"),
        ("secretkey", "hunter2"),
        ("AWS_SESSION_TOKEN", "hunter3"),
        ("sseCustomerKey", SSE_KEY),
        ("tls.crt", &pair.certificate),
        ("tls.key", &pair.key),
    ]);
    let text = format!("{:?}", secrets.unwrap());
    assert!(text.contains("ClientCertificate(..)"), "{text}");
    assert!(text.contains("AKIA..") && !text.contains("AKIAI"), "{text}");
    assert!(!text.contains("hunter") && !text.contains(&SSE_KEY[..8]), "{text}");
    let short = parse(&[("accesskey", "minio"), ("secretkey", "s")]).unwrap();
    assert!(!format!("{short:?}").contains("min"));
}

proptest! {
    #[test]
    fn no_secrets_panic(
        known in proptest::collection::hash_map(
            proptest::sample::select(SECRET_KEYS.concat()),
            prop_oneof![any::<String>(), Just(SSE_KEY.to_owned()), Just(PEM.to_owned())],
            0..6,
        ),
        unknown in proptest::collection::hash_map(any::<String>(), any::<String>(), 0..3),
    ) {
        let known = known.into_iter().map(|(name, value)| (name.to_owned(), value));
        if let Err(problems) = VolumeSecrets::parse(known.chain(unknown).collect()) {
            prop_assert!(!problems.is_empty());
        }
    }
}
