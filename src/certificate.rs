//! Certificates in PEM form, as Secrets and files hold them: whose word counts for an endpoint
//! ([`CaBundle`]), and what the driver shows there of itself ([`ClientCertificate`]).
//!
//! What is made here can be used: the TLS library has taken it already, and would panic later on a
//! bundle that it cannot read. No message quotes what it is about, and neither do the library's
//! errors, which may.

use std::{fmt, sync::Arc};

use base64::{Engine, engine::general_purpose::STANDARD};
use rustls::{
    Error, InconsistentKeys, RootCertStore,
    crypto::ring::sign::any_supported_type,
    pki_types::{
        CertificateDer, PrivateKeyDer, PrivatePkcs1KeyDer, PrivatePkcs8KeyDer, PrivateSec1KeyDer,
        pem::PemObject,
    },
    sign::CertifiedKey,
};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

/// The certificates that vouch for an endpoint. Cheap to clone.
#[derive(Clone)]
pub struct CaBundle {
    pem: Arc<[u8]>,
    roots: Arc<RootCertStore>,
}

impl CaBundle {
    /// Reads a bundle; what stands between the certificates is passed over.
    ///
    /// # Errors
    /// What it must be, if it holds no certificate or one that cannot be read.
    pub fn parse(pem: &[u8]) -> Result<Self, String> {
        let mut roots = RootCertStore::empty();
        for (index, certificate) in certificates(pem)?.into_iter().enumerate() {
            roots.add(certificate).map_err(|_| unreadable(index))?;
        }
        Ok(Self { pem: pem.into(), roots: Arc::new(roots) })
    }

    /// The bundle as it was given.
    pub fn pem(&self) -> &[u8] {
        &self.pem
    }

    /// The certificates as the TLS library takes them.
    pub fn roots(&self) -> &Arc<RootCertStore> {
        &self.roots
    }
}

impl fmt::Debug for CaBundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CaBundle").field("certificates", &self.roots.len()).finish_non_exhaustive()
    }
}

/// A certificate, and those that lead from it to a CA. Public.
#[derive(Debug, Clone)]
pub struct CertificateChain(Vec<CertificateDer<'static>>);

impl CertificateChain {
    /// Reads a chain, the owner's certificate first.
    ///
    /// # Errors
    /// What it must be.
    pub fn parse(pem: &str) -> Result<Self, String> {
        certificates(pem.as_bytes()).map(Self)
    }
}

/// A private key as it was decoded; overwritten when dropped.
pub struct PrivateKey(Zeroizing<PrivateKeyDer<'static>>);

impl PrivateKey {
    /// Reads a key in the forms PKCS#8, PKCS#1 (RSA) and SEC1 (EC).
    ///
    /// Not by the PEM reader of the TLS library: its buffers grow, and leave copies behind.
    ///
    /// # Errors
    /// What it must be.
    pub fn parse(pem: &str) -> Result<Self, String> {
        let mut keys = sections(pem).filter(|section| section.label.ends_with("PRIVATE KEY"));
        let (Some(key), None) = (keys.next(), keys.next()) else {
            return Err(
                "must hold one private key in PEM form (-----BEGIN PRIVATE KEY-----)".into()
            );
        };
        // A key that is encrypted in the older way says so in a header.
        if key.label == "ENCRYPTED PRIVATE KEY" || key.body.contains(':') {
            return Err("must not be encrypted; remove the passphrase with \"openssl pkey\"".into());
        }
        let mut der = key.decode().ok_or("is cut short or garbled: it is no base64 inside")?;
        let der = std::mem::take(&mut *der);
        let key = match key.label {
            "PRIVATE KEY" => PrivatePkcs8KeyDer::from(der).into(),
            "RSA PRIVATE KEY" => PrivatePkcs1KeyDer::from(der).into(),
            "EC PRIVATE KEY" => PrivateSec1KeyDer::from(der).into(),
            _ => {
                drop(Zeroizing::new(der));
                return Err(format!("{KINDS}, in one of the forms PKCS#8, PKCS#1 and SEC1"));
            }
        };
        Ok(Self(Zeroizing::new(key)))
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(..)")
    }
}

const KINDS: &str = "must be an RSA key of 2048 to 4096 bits, an ECDSA key on P-256 or P-384, or an \
                     Ed25519 key";

/// What a client shows to a server that wants to know it by TLS: a certificate chain, and the key
/// that proves that it is the client's.
///
/// The key is here in the TLS library's own form alone, which signs, prints nothing, and is not
/// overwritten when it goes.
#[derive(Clone)]
pub struct ClientCertificate {
    key: CertifiedKey,
    digest: ClientCertificateDigest,
}

/// Tells client certificates apart. Lives in memory only.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ClientCertificateDigest([u8; 32]);

/// Which half of a pair is wrong, and what it must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Misfit {
    /// The certificate.
    Certificate(&'static str),
    /// The key.
    Key(&'static str),
}

impl ClientCertificate {
    /// Makes a pair of its halves.
    ///
    /// # Errors
    /// Which half is wrong, and why.
    pub fn new(chain: CertificateChain, key: &PrivateKey) -> Result<Self, Misfit> {
        let digest = ClientCertificateDigest::new(&chain, key);
        let signer = any_supported_type(&key.0).map_err(|_| Misfit::Key(KINDS))?;
        let key = CertifiedKey::new(chain.0, signer);
        match key.keys_match() {
            Ok(()) => Ok(Self { key, digest }),
            Err(Error::InconsistentKeys(
                InconsistentKeys::KeyMismatch | InconsistentKeys::Unknown,
            )) => Err(Misfit::Key(
                "does not belong to the certificate; the owner's certificate must come first in \
                 its chain",
            )),
            Err(_) => Err(Misfit::Certificate(
                "must begin with the owner's certificate, of X.509 version 3",
            )),
        }
    }

    /// The pair as the TLS library takes it.
    pub fn key(&self) -> &CertifiedKey {
        &self.key
    }

    /// Tells it from others.
    pub fn digest(&self) -> &ClientCertificateDigest {
        &self.digest
    }
}

impl ClientCertificateDigest {
    /// Over both halves: a certificate is public, and whoever could make somebody else's pass for
    /// theirs must not become them.
    fn new(chain: &CertificateChain, key: &PrivateKey) -> Self {
        let mut digest = Sha256::new();
        let certificates = chain.0.iter().map(AsRef::as_ref);
        for part in certificates.chain([key.0.secret_der()]) {
            digest.update((part.len() as u64).to_le_bytes());
            digest.update(part);
        }
        Self(digest.finalize().into())
    }

    /// The digest itself.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for ClientCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientCertificate(..)")
    }
}

impl fmt::Debug for ClientCertificateDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientCertificateDigest(..)")
    }
}

/// All certificates of a text, at least one.
fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let read = CertificateDer::pem_slice_iter(pem).enumerate();
    let read = read.map(|(index, found)| found.map_err(|_| unreadable(index)));
    let found: Vec<_> = read.collect::<Result<_, _>>()?;
    if found.is_empty() {
        return Err(
            "must contain a certificate in PEM form (-----BEGIN CERTIFICATE-----)".to_owned()
        );
    }
    Ok(found)
}

fn unreadable(index: usize) -> String {
    format!("must contain certificates in PEM form; number {} of it cannot be read", index + 1)
}

/// One part of a PEM text.
struct Section<'a> {
    label: &'a str,
    body: &'a str,
}

/// The complete sections of a text.
fn sections(pem: &str) -> impl Iterator<Item = Section<'_>> {
    pem.split("-----BEGIN ").skip(1).filter_map(|text| {
        let (label, text) = text.split_once("-----")?;
        let (body, end) = text.split_once("-----END ")?;
        end.strip_prefix(label)?.strip_prefix("-----")?;
        Some(Section { label, body })
    })
}

impl Section<'_> {
    /// The bytes, in buffers that never grow, so that none leaves a copy behind.
    fn decode(&self) -> Option<Zeroizing<Vec<u8>>> {
        let mut text = Zeroizing::new(Vec::with_capacity(self.body.len()));
        text.extend(self.body.bytes().filter(|byte| !byte.is_ascii_whitespace()));
        let mut bytes = Zeroizing::new(vec![0; text.len()]);
        let length = STANDARD.decode_slice(&*text, &mut bytes).ok()?;
        bytes.truncate(length);
        Some(bytes)
    }
}

#[cfg(test)]
pub(crate) mod samples;
#[cfg(test)]
mod tests;
