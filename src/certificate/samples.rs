//! Certificates and keys for tests.

use base64::{Engine, engine::general_purpose::STANDARD};
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, PKCS_RSA_SHA256};

/// A certificate and its key, both in PEM form.
pub(crate) struct Pair {
    pub(crate) certificate: String,
    pub(crate) key: String,
}

impl Pair {
    fn of(key: &KeyPair) -> Self {
        let params = CertificateParams::new(["s3.test".to_owned()]).unwrap();
        let certificate = params.self_signed(key).unwrap().pem();
        Self { certificate, key: key.serialize_pem() }
    }

    /// A new one, on P-256.
    pub(crate) fn ecdsa() -> Self {
        Self::of(&KeyPair::generate().unwrap())
    }

    /// A new one, on P-384.
    pub(crate) fn p384() -> Self {
        Self::of(&KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap())
    }

    /// A new one, of Ed25519.
    pub(crate) fn ed25519() -> Self {
        Self::of(&KeyPair::generate_for(&PKCS_ED25519).unwrap())
    }

    /// One of RSA; the key is always the same.
    pub(crate) fn rsa() -> Self {
        let pkcs1 = STANDARD.decode(RSA.concat()).unwrap();
        let length = |length: usize| u16::try_from(length).unwrap().to_be_bytes();
        // RFC 5208: a version, the algorithm rsaEncryption, and the key.
        let mut body =
            b"\x02\x01\x00\x30\x0d\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01\x05\x00\x04\x82"
                .to_vec();
        body.extend(length(pkcs1.len()));
        body.extend(pkcs1);
        let mut pkcs8 = b"\x30\x82".to_vec();
        pkcs8.extend(length(body.len()));
        pkcs8.extend(body);
        let key = KeyPair::from_pkcs8_der_and_sign_algo(&pkcs8.into(), &PKCS_RSA_SHA256);
        Self::of(&key.unwrap())
    }

    /// The key's bytes.
    pub(crate) fn key_der(&self) -> Vec<u8> {
        let lines = self.key.lines().filter(|line| !line.starts_with("-----"));
        STANDARD.decode(lines.collect::<String>()).unwrap()
    }

    /// The key without the frame of PKCS#8, whose last `length` bytes it is, under another name.
    pub(crate) fn bare_key(&self, label: &str, length: usize) -> String {
        let der = self.key_der();
        pem(label, &der[der.len() - length..])
    }
}

/// Bytes in PEM form.
pub(crate) fn pem(label: &str, bytes: &[u8]) -> String {
    let text = STANDARD.encode(bytes);
    let lines = text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap());
    let body = lines.collect::<Vec<_>>().join("\n");
    format!("-----BEGIN {label}-----\n{body}\n-----END {label}-----\n")
}

/// The length of [`Pair::rsa`]'s key in the form PKCS#1.
pub(crate) fn rsa_length() -> usize {
    STANDARD.decode(RSA.concat()).unwrap().len()
}

/// A key that opens nothing.
const RSA: &[&str] = &[
    "MIIEpAIBAAKCAQEAqIgQNcSFPAxt7jsOM1WhErzGdd2lkapNnuIQ695OsgEwf4xx8mzXsPK3+23yeV+y9UaWtNRp",
    "Ki/haGfXYbXJvigHa1uF6PxV2D9g2dsJc1w6suCCOsSatHTZyvLcJHHEzkljLAd7+ZHUqbARthnMsd/sNeXRIINt",
    "uxmoK73LbNOtgCpnIApWlBBzaplmsPyQ1avEhC1IAUHKwCKB8YPsPYKftfWYcVrJ+ndp06GP2Galr7qSPtqXX6k+",
    "q8muuhjTJnZpttP5HB4ZEHjhaN5ajPQ3G4FjAf+Lwy2+RWw4CUOga87k21bWRcVry92lLHijN/BUKPyevScqplCZ",
    "quuPtQIDAQABAoIBACVQ0z4EgHe2TNT18IP/TsXmVI8ef52MNtmaNqLzOzuAtetX/pbt8Kg2ZfRe+NRVEzvp4E6z",
    "xYFYzrEeZPs2lC/tjw7/Wdwnmx5hkiFKtYH8hua6fTtj8tlIEj00nvfW1PvUFghWs+Wjm5Hi8Vj/x2oPKa8Zbr+j",
    "OjW2TZ05zgQPUpuEvwuhhf5riVY6Cx3T+8jBY7dwwtW6nKl0YdxvI5JjZJkHvhAJj+ILxpNSwjJUiqaA6GhtizvG",
    "XjInUleiBd3ENxfBiUcjm1OYkfaLi5Ot9iMIg85awJFd/PQ3FzB2c+JnbgFx/LWbQrDAO6EfuTgrhNjSuZm3Vot/",
    "mL9y7HUCgYEA0cH476795nve2I6qKjUFwWO3St3QWwlBq555V79MqpAF3ncXuplGMQSiKTecUqOG8DqM8ja3fdXV",
    "UV6cF8UpZ0fIVBAGifRKuk9frVI/aG0pXynazSdNLvGuEFotEmredEYg+hrjjsTK1O8zLCy7jLblBsj2nSANZ42F",
    "5X9uBAMCgYEAza9rujoMkWc4OZGe3zJcXQHorqGS2gxQ4PpxPBsWY8mgaL80Zd27ggPmSIvoWa3HFMsMcUZuXZhE",
    "DwX7/WdIala2m6i7YtRmUWnck5BOEt0GvZrXdLmt2P8uYV4cj9kK9r9+Gbvqn4+oSP2sz/L1scDyg+ZbCEHAphi8",
    "g/Q9++cCgYEAtdHV3q1pGKi2+jBwADYFzySIdTTgrojPi9vKgu0nn5FIBRZmUzEZTtQdXGz/7AIjrYiTNEGJvGHm",
    "jqnb1B7rTMNEOtnJUTuYqvaykKKCpBo7imnVZ49xsAd+Ql5oQ1avjUpcu28jYVXkG79cNCZyS/8dd0wruPdXpzNd",
    "pRlYW9ECgYAD9sB9u0aourODsIG+TWsoQ7QnQWfiGeCpJUpvXRpGXAliW2T4HZjSfZ6/gSq+J7IxfWRE/pV76kZN",
    "f9EGZiooGnm0cEEEO5GpOgANO/e1N1s85jIGxtlJ2EkdiUHFp+olLTWR62QvJQaaOYFOFKGVhmFmF1djxlifGtTv",
    "OhLDuwKBgQCjYtZtobqd7Qs58QNqGGt3Bx+XVlZi2PgiYXMd7vBUOYG7PtOM+Opg72vR5QLGwRlxf9EOqhtRwv7F",
    "9ijWCxAGK55sqmLwuv1AEA6g/DrqZImQ8NVvVlFc8YPeILzr9eV7lE7zp7LVl1oQFf74qb4lsyjgL8sj5GcY9H8O",
    "vwaflg==",
];
