//! What a case gives away: every secret that a plugin was handed is looked for in all that it says
//! and keeps.
//!
//! Whoever hands something secret to a plugin goes through [`Kubelet`](super::kubelet::Kubelet) or
//! [`Home`](super::plugin::Home), and both report it here, so a new case is covered without a word
//! in it. A secret is looked for as it is and as somebody might have encoded it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt::Write,
    path::{Path, PathBuf},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use parking_lot::Mutex;

/// Shorter values ("x") would be found everywhere. Cases use longer ones where it matters.
const SHORTEST: usize = 8;

/// What is public in a Secret.
const PUBLIC: [&str; 2] = ["ca.crt", "tls.crt"];

/// The key of the tokens, in the secrets and in the volume context.
const TOKENS: &str = "csi.storage.k8s.io/serviceAccount.tokens";

/// Never seen, whoever uses them: signed headers, and what servers of the tests give out as secret.
const ALWAYS: [&str; 4] =
    ["AWS4-HMAC-SHA256 ", "X-Amz-Signature=", "x-amz-security-token:", "MARKED"];

/// The directories of a store that hold the content of objects, and names made of their keys.
const CONTENT: [&str; 3] = ["v1/blobs", "v1/volumes", "v1/tmp"];

/// Secrets that one plugin's directories have seen, and what the plugin answered.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    secrets: Mutex<BTreeMap<Vec<u8>, String>>,
    said: Mutex<Vec<(String, String)>>,
}

impl Watch {
    /// Looks for this value from now on.
    pub(crate) fn secret(&self, name: &str, value: impl AsRef<[u8]>) {
        let value = value.as_ref();
        if value.len() >= SHORTEST {
            self.secrets.lock().insert(value.to_vec(), name.to_owned());
        }
    }

    /// Looks for what is secret in a publish request.
    pub(crate) fn request(
        &self,
        secrets: &HashMap<String, String>,
        context: &HashMap<String, String>,
    ) {
        for (name, value) in secrets.iter().filter(|(name, _)| !PUBLIC.contains(&name.as_str())) {
            self.secret(name, value);
            // The bytes behind an SSE-C key, the lines of a private key.
            if let Ok(bytes) = STANDARD.decode(value) {
                self.secret(name, bytes);
            }
            for line in value.lines().filter(|line| !line.starts_with("-----")) {
                self.secret(name, line);
            }
            self.private_key(name, value);
        }
        for tokens in secrets.get(TOKENS).into_iter().chain(context.get(TOKENS)) {
            self.tokens(tokens);
        }
    }

    /// A private key in PEM form: its bytes, and those in which it does not look like others (of the
    /// kind that the tests make: P-256 in PKCS#8).
    fn private_key(&self, name: &str, value: &str) {
        let Some((_, body)) = value.split_once("PRIVATE KEY-----") else { return };
        let (body, _) = body.split_once("-----END").unwrap_or((body, ""));
        let body: String = body.chars().filter(|c| !c.is_whitespace()).collect();
        let der = STANDARD.decode(body).unwrap_or_default();
        self.secret(name, der.get(36..68).unwrap_or_default());
        self.secret(name, der);
    }

    /// The tokens in the kubelet's JSON, and where they begin and end: a service may quote a part.
    fn tokens(&self, json: &str) {
        let tokens: BTreeMap<String, serde_json::Value> =
            serde_json::from_str(json).unwrap_or_default();
        for token in tokens.values().filter_map(|issued| issued["token"].as_str()) {
            self.secret("a token", token);
            self.secret("a token's beginning", token.get(..100).unwrap_or_default());
            if let Some((_, signature)) = token.rsplit_once('.') {
                let end = signature.len().saturating_sub(40);
                self.secret("a token's signature", signature.get(end..).unwrap_or_default());
            }
        }
    }

    /// Remembers what the plugin answered, to be looked through at the end.
    pub(crate) fn said(&self, place: &str, text: impl Into<String>) {
        self.said.lock().push((place.to_owned(), text.into()));
    }

    /// For who has planted something.
    pub(crate) fn forget_what_was_said(&self) {
        self.said.lock().clear();
    }

    /// Whether something was said at that place.
    pub(crate) fn has_heard(&self, place: &str) -> bool {
        self.said.lock().iter().any(|(said_at, text)| said_at == place && !text.is_empty())
    }

    /// Where one of the secrets can be read: in the log, in what was said, in a file below `states`
    /// that holds no object's content, or in such a file's name.
    pub(crate) fn leaks(&self, log: &[u8], states: &[PathBuf]) -> Vec<String> {
        let mut forms = self.forms();
        forms.extend(ALWAYS.map(|text| (text.to_owned(), text.to_owned())));
        let mut found: BTreeSet<String> = BTreeSet::new();
        let mut look = |forms: &[(String, String)], place: &str, text: &[u8]| {
            let text = as_text(text);
            let hit = forms.iter().filter(|(form, _)| text.contains(form.as_str()));
            found.extend(hit.map(|(_, name)| format!("{name} is in {place}")));
        };
        for (place, text) in &*self.said.lock() {
            look(&forms, place, text.as_bytes());
        }
        for file in states.iter().flat_map(|state| kept_files(state)) {
            let is_key = file.ends_with("node.key");
            let content = std::fs::read(&file).unwrap_or_default();
            let place = file.display().to_string();
            look(&forms, "a file's name", place.as_bytes());
            if is_key {
                forms.extend(spellings(&content).into_iter().map(|it| (it, "node.key".to_owned())));
            } else {
                look(&forms, &place, &content);
            }
        }
        look(&forms, "the log", log);
        found.into_iter().collect()
    }

    /// Everything to look for, and whose it is.
    fn forms(&self) -> Vec<(String, String)> {
        let secrets = self.secrets.lock();
        let of = |(value, name): (&Vec<u8>, &String)| {
            spellings(value).into_iter().map(|form| (form, name.clone())).collect::<Vec<_>>()
        };
        secrets.iter().flat_map(of).collect()
    }
}

/// The files below a directory that hold no object's content, `node.key` first: it is looked for in
/// all others.
fn kept_files(directory: &Path) -> Vec<PathBuf> {
    let mut pending = vec![directory.to_owned()];
    let mut files = Vec::new();
    while let Some(directory) = pending.pop() {
        for entry in std::fs::read_dir(&directory).into_iter().flatten().flatten() {
            let path = entry.path();
            if CONTENT.iter().any(|content| path.ends_with(content)) {
                continue;
            }
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => pending.push(path),
                _ => files.push(path),
            }
        }
    }
    files.sort_by_key(|path| !path.ends_with("node.key"));
    files
}

/// A value as it is, in hexadecimal and decimal, base64 (wherever it stands in what was encoded), percent
/// encoded, and as JSON and `Debug` escape it.
pub(crate) fn spellings(value: &[u8]) -> Vec<String> {
    let raw = as_text(value);
    let decimal = format!("{value:?}").trim_matches(['[', ']']).to_owned();
    let mut all = BTreeSet::from([raw, hex::encode(value), hex::encode_upper(value), decimal]);
    for offset in 0..3 {
        let encoded = in_base64(value, offset);
        all.insert(encoded.replace('+', "-").replace('/', "_"));
        all.insert(encoded);
    }
    let percent = value.iter().fold(String::new(), |mut text, byte| {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                text.push(char::from(*byte));
            }
            _ => write!(text, "%{byte:02X}").expect("text takes everything"),
        }
        text
    });
    all.insert(percent.replace("%2F", "/"));
    all.insert(percent);
    if let Ok(text) = std::str::from_utf8(value) {
        let json = serde_json::to_string(text).expect("text is JSON");
        all.insert(json.trim_matches('"').to_owned());
        all.insert(format!("{text:?}").trim_matches('"').to_owned());
    }
    all.into_iter().filter(|form| form.len() >= SHORTEST).collect()
}

/// The characters that stand for `value` alone in the base64 of something longer, in which it begins
/// `offset` bytes after a multiple of three.
fn in_base64(value: &[u8], offset: usize) -> String {
    let mut padded = vec![0; offset];
    padded.extend(value);
    let whole = padded.len() / 3 * 3;
    let encoded = STANDARD.encode(&padded[..whole]);
    encoded[if offset == 0 { 0 } else { 4 }.min(encoded.len())..].to_owned()
}

/// Bytes as text in which each byte is one character, so that nothing is lost or joined.
fn as_text(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| char::from(*byte)).collect()
}
