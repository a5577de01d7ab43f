use test_case::test_case;

use super::{
    samples::{Pair, pem, rsa_length},
    *,
};

/// The length of a P-256 key in the form SEC1, as ring writes it.
const SEC1: usize = 109;

fn made(certificate: &str, key: &str) -> Result<ClientCertificate, Misfit> {
    ClientCertificate::new(
        CertificateChain::parse(certificate).unwrap(),
        &PrivateKey::parse(key).unwrap(),
    )
}

#[test]
fn every_kind_of_key_makes_a_pair() {
    for pair in [Pair::ecdsa(), Pair::p384(), Pair::ed25519(), Pair::rsa()] {
        made(&pair.certificate, &pair.key).unwrap();
    }
}

#[test]
fn every_form_of_a_key_makes_the_same_pair() {
    let ecdsa = Pair::ecdsa();
    made(&ecdsa.certificate, &ecdsa.bare_key("EC PRIVATE KEY", SEC1)).unwrap();
    let rsa = Pair::rsa();
    made(&rsa.certificate, &rsa.bare_key("RSA PRIVATE KEY", rsa_length())).unwrap();
}

#[test]
fn what_tools_write_around_a_key_is_passed_over() {
    let pair = Pair::ecdsa();
    let parameters = pem("EC PARAMETERS", b"curve");
    let key = pair.bare_key("EC PRIVATE KEY", SEC1);
    made(&pair.certificate, &format!("a note\n{parameters}{key}")).unwrap();
    made(&pair.certificate, &format!("{}{}", pair.key, pair.certificate)).unwrap();
    made(&pair.certificate, &pair.key.replace('\n', "\r\n")).unwrap();
}

#[test]
fn a_chain_begins_with_its_owner() {
    let (owner, issuer) = (Pair::ecdsa(), Pair::ecdsa());
    let chain = format!("{}{}", owner.certificate, issuer.certificate);
    assert_eq!(made(&chain, &owner.key).unwrap().key().cert.len(), 2);
    assert!(matches!(made(&chain, &issuer.key), Err(Misfit::Key(text)) if text.contains("first")));
}

#[test]
fn a_key_must_belong_to_its_certificate() {
    let other = made(&Pair::ecdsa().certificate, &Pair::ecdsa().key);
    assert!(matches!(other, Err(Misfit::Key(text)) if text.contains("does not belong")));
    let of_another_kind = made(&Pair::rsa().certificate, &Pair::ecdsa().key);
    assert!(matches!(of_another_kind, Err(Misfit::Key(_))));
}

#[test]
fn who_makes_a_foreign_certificate_theirs_is_refused() {
    // The victim's public key beside a key of one's own, as PKCS#8 can hold them.
    let (victim, thief) = (Pair::ecdsa(), Pair::ecdsa());
    let (public, mut forged) = (victim.key_der(), thief.key_der());
    let point = forged.len() - 64;
    forged[point..].copy_from_slice(&public[point..]);
    let forged = made(&victim.certificate, &pem("PRIVATE KEY", &forged));
    assert!(matches!(forged, Err(Misfit::Key(_))));
}

#[test]
fn pairs_are_told_apart() {
    let (one, other) = (Pair::rsa(), Pair::ecdsa());
    let digest = |certificate: &str, key: &str| *made(certificate, key).unwrap().digest();
    assert_eq!(digest(&one.certificate, &one.key), digest(&one.certificate, &one.key));
    assert_ne!(digest(&one.certificate, &one.key), digest(&other.certificate, &other.key));
    // The same certificate with more behind it: a server may accept the one and not the other.
    let longer = format!("{}{}", one.certificate, other.certificate);
    assert_ne!(digest(&one.certificate, &one.key), digest(&longer, &one.key));
}

#[test_case("", "one private key"; "nothing")]
#[test_case("MARKED", "one private key"; "no PEM")]
#[test_case("-----BEGIN PRIVATE KEY-----\nMARKED", "one private key"; "cut short")]
#[test_case("-----BEGIN PRIVATE KEY-----\nMARKED\n-----END RSA PRIVATE KEY-----", "one private key"; "another end")]
#[test_case("-----BEGIN PRIVATE KEY-----\nMARKED?\n-----END PRIVATE KEY-----", "no base64"; "no base64")]
#[test_case("-----BEGIN CERTIFICATE-----\nMARKED==\n-----END CERTIFICATE-----", "one private key"; "a certificate")]
#[test_case("-----BEGIN ENCRYPTED PRIVATE KEY-----\nMARKED==\n-----END ENCRYPTED PRIVATE KEY-----", "passphrase"; "encrypted")]
#[test_case("-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\nMARKED==\n-----END RSA PRIVATE KEY-----", "passphrase"; "encrypted in the older way")]
#[test_case("-----BEGIN OPENSSH PRIVATE KEY-----\nMARKEDAA\n-----END OPENSSH PRIVATE KEY-----", "PKCS#8"; "another form")]
fn what_a_key_must_be_is_told_without_it(pem: &str, text: &str) {
    let message = PrivateKey::parse(pem).unwrap_err();
    assert!(message.contains(text) && !message.contains("MARKED"), "{message}");
}

#[test]
fn two_keys_are_one_too_many() {
    let key = Pair::ecdsa().key;
    assert!(PrivateKey::parse(&key.repeat(2)).unwrap_err().contains("one private key"));
}

#[test]
fn a_key_that_is_none_inside_is_refused() {
    let key = PrivateKey::parse(&pem("PRIVATE KEY", b"MARKED")).unwrap();
    let chain = CertificateChain::parse(&Pair::ecdsa().certificate).unwrap();
    let misfit = ClientCertificate::new(chain, &key).unwrap_err();
    assert!(matches!(misfit, Misfit::Key(text) if text.contains("P-256")));
}

#[test]
fn a_certificate_that_is_none_inside_is_refused() {
    let none = pem("CERTIFICATE", b"MARKED");
    let misfit = made(&none, &Pair::ecdsa().key).unwrap_err();
    assert!(matches!(misfit, Misfit::Certificate(_)));
    // The SDK would panic on it when the first connection is made.
    let text = CaBundle::parse(none.as_bytes()).unwrap_err();
    assert!(text.contains("number 1"), "{text}");
}

#[test_case("", "must contain a certificate"; "nothing")]
#[test_case("MARKED", "must contain a certificate"; "no PEM")]
#[test_case("-----BEGIN CERTIFICATE-----\nMARKED", "number 1"; "cut short")]
#[test_case("-----BEGIN CERTIFICATE-----\nMARKED?\n-----END CERTIFICATE-----", "number 1"; "no base64")]
#[test_case("-----BEGIN MARKED", "number 1"; "no beginning")]
fn what_a_bundle_must_be_is_told_without_it(pem: &str, text: &str) {
    for message in
        [CaBundle::parse(pem.as_bytes()).unwrap_err(), CertificateChain::parse(pem).unwrap_err()]
    {
        assert!(message.contains(text) && !message.contains("MARKED"), "{message}");
    }
}

#[test]
fn a_bundle_keeps_its_text_and_its_certificates() {
    let text = format!("# one\n{}\n# two\n{}", Pair::ecdsa().certificate, Pair::rsa().certificate);
    let bundle = CaBundle::parse(text.as_bytes()).unwrap();
    assert_eq!(bundle.pem(), text.as_bytes());
    assert_eq!(bundle.roots().len(), 2);
    // The second one counts as much as the first.
    let torn = format!("{text}{}", pem("CERTIFICATE", b"none"));
    assert!(CaBundle::parse(torn.as_bytes()).unwrap_err().contains("number 3"));
}

#[test]
fn debug_shows_no_key() {
    let pair = Pair::ecdsa();
    let key = PrivateKey::parse(&pair.key).unwrap();
    let made = made(&pair.certificate, &pair.key).unwrap();
    assert_eq!(format!("{key:?} {made:?}"), "PrivateKey(..) ClientCertificate(..)");
    assert_eq!(format!("{:?}", made.digest()), "ClientCertificateDigest(..)");
}
