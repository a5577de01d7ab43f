//! Service account tokens, as the kubelet adds them to a publish request.
//!
//! A token is read, and never verified: whoever gives credentials for it does that. What it says
//! about the pod counts all the same if it came among the secrets, whose keys cannot hold a `/`, so
//! that only the kubelet can have put it there. In the volume context anybody may have written it.
//!
//! The text of a token is overwritten when dropped, and no message and no `Debug` output shows it.

use std::{collections::BTreeMap, fmt};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jiff::Timestamp;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use zeroize::Zeroizing;

/// Where the kubelet puts the tokens: among the secrets, or in the volume context.
pub const TOKENS_KEY: &str = "csi.storage.k8s.io/serviceAccount.tokens";

/// Longer ones are no tokens of a service account.
const MAX_TOKEN: usize = 16 << 10;

/// More audiences than messages can name.
const MAX_TOKENS: usize = 64;

/// The tokens of one request, by audience; at least one.
#[derive(Debug, Clone)]
pub struct ServiceTokens(BTreeMap<String, ServiceToken>);

/// A token, and what it says about itself.
#[derive(Clone)]
pub struct ServiceToken {
    text: SecretString,
    /// Whom it is for: the service.
    pub audience: String,
    /// Whom it speaks of: `system:serviceaccount:NAMESPACE:NAME`.
    pub subject: String,
    /// When it ceases to count.
    pub expires_at: Timestamp,
    /// The namespace of the pod that it was made for.
    pub namespace: Option<String>,
    /// The service account of the pod that it was made for.
    pub service_account: Option<String>,
}

/// One value of the kubelet's JSON.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Issued<'a> {
    #[serde(borrow)]
    token: &'a str,
    #[serde(borrow)]
    expiration_timestamp: Option<&'a str>,
}

/// What is read of a token's claims.
#[derive(Deserialize)]
struct Claims {
    sub: String,
    exp: Option<f64>,
    #[serde(rename = "kubernetes.io", default)]
    kubernetes: Kubernetes,
}

#[derive(Default, Deserialize)]
struct Kubernetes {
    namespace: Option<String>,
    serviceaccount: Option<Named>,
}

#[derive(Deserialize)]
struct Named {
    name: Option<String>,
}

impl fmt::Debug for ServiceToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServiceToken")
            .field("audience", &self.audience)
            .field("subject", &self.subject)
            .field("expires_at", &self.expires_at)
            .finish_non_exhaustive()
    }
}

impl ServiceToken {
    /// The token itself.
    pub fn expose(&self) -> &str {
        self.text.expose_secret()
    }

    /// Whether it does not count any more.
    pub fn is_expired(&self) -> bool {
        self.expires_at <= Timestamp::now()
    }

    fn parse(audience: String, issued: &Issued<'_>) -> Result<Self, String> {
        const RULE: &str = "must be a token of a service account";
        let about = |text: &str| format!("the token for audience {audience:?} {text}");
        if issued.token.len() > MAX_TOKEN || !issued.token.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(about(RULE));
        }
        let claims = issued.token.split('.').nth(1).and_then(claims);
        let Claims { sub: subject, exp, kubernetes } = claims.ok_or_else(|| about(RULE))?;
        if subject.is_empty() {
            return Err(about("has no subject"));
        }
        #[expect(clippy::cast_possible_truncation, reason = "seconds; out of range is no time")]
        let expires_at = exp.and_then(|seconds| Timestamp::from_second(seconds as i64).ok());
        let expires_at = expires_at.or_else(|| issued.expiration_timestamp?.parse().ok());
        Ok(Self {
            text: issued.token.into(),
            expires_at: expires_at.ok_or_else(|| about("does not say when it expires"))?,
            subject,
            namespace: kubernetes.namespace,
            service_account: kubernetes.serviceaccount.and_then(|account| account.name),
            audience,
        })
    }
}

/// The claims of a token, without a look at its signature.
fn claims(payload: &str) -> Option<Claims> {
    // Room for what it decodes to, so that no growing buffer leaves copies behind.
    let mut decoded = Zeroizing::new(vec![0; payload.len()]);
    let length = URL_SAFE_NO_PAD.decode_slice(payload, &mut decoded).ok()?;
    serde_json::from_slice(&decoded[..length]).ok()
}

impl ServiceTokens {
    /// Parses the kubelet's JSON; `None` if there is no token in it.
    ///
    /// # Errors
    /// What is wrong, by the names of the audiences.
    pub fn parse(json: &str) -> Result<Option<Self>, String> {
        const RULE: &str =
            "must be the tokens of a service account by audience, as the kubelet writes them";
        // The parser's own words might quote a token.
        let issued: BTreeMap<String, Issued<'_>> =
            serde_json::from_str(json).map_err(|_| RULE.to_owned())?;
        if issued.len() > MAX_TOKENS {
            return Err(format!("must be at most {MAX_TOKENS} tokens"));
        }
        let parse = |(audience, issued): (String, Issued<'_>)| {
            ServiceToken::parse(audience.clone(), &issued).map(|token| (audience, token))
        };
        let tokens: BTreeMap<_, _> = issued.into_iter().map(parse).collect::<Result<_, _>>()?;
        Ok((!tokens.is_empty()).then_some(Self(tokens)))
    }

    /// The token for an audience; without one, the only token.
    ///
    /// # Errors
    /// That there is none, or more than one, naming the audiences that there are.
    pub fn select(&self, audience: Option<&str>) -> Result<&ServiceToken, String> {
        let mut all = self.0.values();
        match (audience, all.next(), all.next()) {
            (Some(audience), ..) => self.0.get(audience).ok_or_else(|| {
                format!(
                    "no token for audience {audience:?} came with the request, only for {}; add it \
                     to tokenRequests of the CSIDriver, or set audience to one of them",
                    self.audiences()
                )
            }),
            (None, Some(only), None) => Ok(only),
            (None, ..) => Err(format!(
                "tokens for {} came with the request; set audience (or sts.audience of the \
                 endpoint) to one of them",
                self.audiences()
            )),
        }
    }

    /// Any of them: all speak of the same pod.
    pub(super) fn any(&self) -> Option<&ServiceToken> {
        self.0.values().next()
    }

    fn audiences(&self) -> String {
        let names: Vec<String> = self.0.keys().map(|audience| format!("{audience:?}")).collect();
        names.join(", ")
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;
    use serde_json::json;
    use test_case::test_case;

    use super::*;

    /// An unsigned token with these claims.
    pub(crate) fn token(claims: &serde_json::Value) -> String {
        format!("h.{}.MARKED", URL_SAFE_NO_PAD.encode(claims.to_string()))
    }

    fn pod_token(audience: &str) -> String {
        token(&json!({
            "aud": [audience],
            "sub": "system:serviceaccount:spark:driver",
            "exp": 4_000_000_000_u64,
            "kubernetes.io": { "namespace": "spark", "serviceaccount": { "name": "driver" } },
        }))
    }

    fn tokens(audiences: &[&str]) -> ServiceTokens {
        let tokens = audiences.iter().map(|audience| {
            let text = pod_token(audience);
            let value = json!({ "token": text, "expirationTimestamp": "2031-01-01T00:00:00Z" });
            ((*audience).to_owned(), value)
        });
        let json = serde_json::Value::Object(tokens.collect()).to_string();
        ServiceTokens::parse(&json).unwrap().unwrap()
    }

    #[test]
    fn a_token_says_whom_it_speaks_of() {
        let tokens = tokens(&["sts"]);
        let token = tokens.select(None).unwrap();
        assert_eq!(token.subject, "system:serviceaccount:spark:driver");
        assert_eq!(token.namespace.as_deref(), Some("spark"));
        assert_eq!(token.service_account.as_deref(), Some("driver"));
        assert_eq!(token.expires_at, Timestamp::from_second(4_000_000_000).unwrap());
        assert_eq!(token.expose(), pod_token("sts"));
        assert!(!token.is_expired());
    }

    #[test]
    fn without_a_claim_the_kubelet_says_when_it_expires() {
        let issued = |expires: serde_json::Value| {
            let text = token(&json!({ "sub": "a" }));
            let json = json!({ "": { "token": text, "expirationTimestamp": expires } });
            ServiceTokens::parse(&json.to_string())
        };
        let tokens = issued(json!("2001-01-01T00:00:00Z")).unwrap().unwrap();
        assert!(tokens.select(None).unwrap().is_expired());
        assert!(issued(json!(null)).unwrap_err().contains("when it expires"));
    }

    #[test]
    fn the_audience_selects_a_token() {
        let both = tokens(&["sts", "vault"]);
        assert_eq!(both.select(Some("vault")).unwrap().expose(), pod_token("vault"));
        let message = both.select(None).unwrap_err();
        assert!(message.contains("\"sts\", \"vault\"") && message.contains("audience"));
        let message = both.select(Some("s3")).unwrap_err();
        assert!(message.contains("\"s3\"") && message.contains("\"sts\", \"vault\""));
        assert!(tokens(&["sts"]).select(None).is_ok());
        assert!(tokens(&["sts"]).select(Some("")).is_err());
    }

    #[test]
    fn no_tokens_are_none() {
        assert!(ServiceTokens::parse("{}").unwrap().is_none());
    }

    #[test_case("MARKED"; "no json")]
    #[test_case(r#"{"a":"MARKED"}"#; "no mapping")]
    #[test_case(r#"{"a":{"token":"MARKED"}}"#; "no token")]
    #[test_case(r#"{"a":{"token":"x.MARKED.y"}}"#; "no claims")]
    #[test_case(r#"{"a":{"token":"x.e30.MARKED"}}"#; "no subject")]
    #[test_case(r#"{"a":{"token":"x.MARKED\n.y"}}"#; "an escape")]
    #[test_case(r#"{"a":{"token":"x.e30.y","expirationTimestamp":"MARKED"}}"#; "no time")]
    fn what_is_wrong_is_told_without_the_token(json: &str) {
        let message = ServiceTokens::parse(json).unwrap_err();
        assert!(!message.contains("MARKED"), "{message}");
    }

    #[test]
    fn debug_shows_no_token() {
        let tokens = tokens(&["sts"]);
        let text = format!("{tokens:?}");
        assert!(text.contains("system:serviceaccount") && !text.contains("MARKED"), "{text}");
    }

    proptest! {
        #[test]
        fn no_text_makes_parse_panic(text in "\\PC{0,200}") {
            drop(ServiceTokens::parse(&text));
            let issued = json!({ "a": { "token": text, "expirationTimestamp": text } });
            drop(ServiceTokens::parse(&issued.to_string()));
        }

        #[test]
        fn no_claims_make_parse_panic(claims in "\\PC{0,200}", exp in any::<f64>()) {
            for payload in [claims, json!({ "sub": "a", "exp": exp }).to_string()] {
                let token = format!("h.{}.s", URL_SAFE_NO_PAD.encode(payload));
                drop(ServiceTokens::parse(&json!({ "a": { "token": token } }).to_string()));
            }
        }
    }
}
