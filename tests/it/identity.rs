//! Who asks S3: a pod by its token, or nobody. The driver itself: see `driver`.
//!
//! On MinIO the tokens are verified by MinIO, whose `policy` claim gives the rights. Beside the
//! embedded server there is a token service of the tests' own, which verifies them too and counts.

use std::{sync::Arc, time::Duration};

use futures::future::join_all;
use serde_json::json;
use tonic::Code;

use crate::{
    fixture::{Fixture, files, tree},
    refresh::{eventually, shows},
    support::{
        issuer::{Issuer, Sts, TOKENS, Token},
        kubelet::Pod,
        minio::Minio,
        s3::ANONYMOUS,
        server::{CREDENTIALS, Server},
    },
};

pub(crate) const SECOND: Duration = Duration::from_secs(1);

/// Who signs tokens, and who gives credentials for them.
pub(crate) enum Realm {
    Own(Box<Issuer>, Sts),
    Minio(Arc<Minio>),
}

impl Realm {
    pub(crate) fn of(server: &Server) -> Self {
        match server {
            Server::Embedded(server) => {
                let issuer = Issuer::start();
                let sts = Sts::start(&issuer, server.shared_rights());
                Self::Own(Box::new(issuer), sts)
            }
            Server::Minio(minio) => Self::Minio(Arc::clone(minio)),
            Server::Radosgw(_) => panic!("Ceph has cases of its own"),
        }
    }

    pub(crate) fn issuer(&self) -> &Issuer {
        match self {
            Self::Own(issuer, _) => issuer,
            Self::Minio(minio) => minio.issuer(),
        }
    }

    /// Where tokens are exchanged.
    pub(crate) fn sts_url(&self, server: &Server) -> String {
        match self {
            Self::Own(_, sts) => sts.url().to_owned(),
            Self::Minio(_) => server.url(),
        }
    }

    pub(crate) fn sts(&self) -> &Sts {
        match self {
            Self::Own(_, sts) => sts,
            Self::Minio(_) => panic!("this case is for the embedded server"),
        }
    }

    /// A token whose holder may read the case's bucket below the prefix and nothing else.
    pub(crate) async fn reader(
        &self,
        fixture: &Fixture,
        service_account: &str,
        prefix: &str,
    ) -> Token {
        let bucket = &fixture.bucket;
        // MinIO keeps one policy for each subject: the cases must not share them.
        let name = format!("{bucket}-{service_account}");
        let token = Token::of("spark", &name);
        match self {
            Self::Own(_, sts) => {
                sts.grant(&token.subject(), bucket, prefix);
                token
            }
            Self::Minio(minio) => {
                let policy = json!({ "Version": "2012-10-17", "Statement": [
                    {
                        "Effect": "Allow",
                        "Action": ["s3:ListBucket"],
                        "Resource": [format!("arn:aws:s3:::{bucket}")],
                        "Condition": { "StringLike": { "s3:prefix": [format!("{prefix}*")] } },
                    },
                    {
                        "Effect": "Allow",
                        "Action": ["s3:GetObject"],
                        "Resource": [format!("arn:aws:s3:::{bucket}/{prefix}*")],
                    },
                ] });
                minio.add_policy(&fixture.server.client(), &name, &policy.to_string()).await;
                Token { policy: Some(name), ..token }
            }
        }
    }

    /// The token as the kubelet brings it.
    pub(crate) fn issue(&self, token: &Token) -> String {
        self.issuer().issue(std::slice::from_ref(token))
    }
}

impl Fixture {
    /// Starts the plugin anew, for pods with tokens.
    async fn realm(&mut self, more: &str) -> Realm {
        let realm = Realm::of(&self.server);
        self.configure_realm(&realm, "", more);
        self.restart().await;
        realm
    }

    /// `sts` are further keys of the endpoint's token service.
    fn configure_realm(&self, realm: &Realm, sts: &str, more: &str) {
        let config = Self::config(&self.server, &format!("limits: {{ minRefresh: 50ms }}\n{more}"));
        let url = match realm {
            Realm::Own(_, own) => format!("url: '{}', ", own.url()),
            // MinIO is its own token service.
            Realm::Minio(_) => String::new(),
        };
        let retries = "    retries: 3\n";
        let config = config.replace(retries, &format!("{retries}    sts: {{ {url}{sts} }}\n"));
        self.home.configure(&config);
    }

    /// A pod with a token among the secrets, and no keys.
    pub(crate) fn pod_with(&self, prefix: &str, tokens: &str) -> Pod {
        self.pod(prefix).with_secrets(&[(TOKENS, tokens)])
    }
}

pub(crate) async fn a_pod_is_whom_its_token_names(mut fixture: Fixture) {
    let realm = fixture.realm("").await;
    fixture.put_certificates().await;
    fixture.put("other/file", "hidden").await;
    let token = realm.reader(&fixture, "driver", "certs/").await;
    let pod = fixture.pod_with("certs", &realm.issue(&token));
    let target = fixture.publish(&pod).await;
    assert_eq!(tree(&target)["keystore.jks"], "keystore");
    // What this one may not read, and what another may not, is in no cache of theirs.
    let beyond = fixture.pod_with("other", &realm.issue(&token));
    fixture.refused(&beyond, Code::PermissionDenied).await;
    let stranger = realm.reader(&fixture, "stranger", "other/").await;
    let refused = fixture.pod_with("certs", &realm.issue(&stranger));
    fixture.refused(&refused, Code::PermissionDenied).await;
    let allowed = fixture.pod_with("other", &realm.issue(&stranger));
    assert_eq!(tree(&fixture.publish(&allowed).await)["file"], "hidden");
    // Keys count before tokens, unless the volume says otherwise.
    let (id, secret) = CREDENTIALS;
    let tokens = realm.issue(&token);
    let both = [("accesskey", id), ("secretkey", secret), (TOKENS, tokens.as_str())];
    fixture.publish(&fixture.pod("other").with_secrets(&both)).await;
    let as_pod = fixture.pod("other").with_secrets(&both).with("authentication", "pod");
    fixture.refused(&as_pod, Code::PermissionDenied).await;
}

pub(crate) async fn tokens_in_the_context_need_trust(mut fixture: Fixture) {
    let realm = fixture.realm("").await;
    fixture.put_certificates().await;
    let token = realm.reader(&fixture, "driver", "certs/").await;
    let tokens = realm.issue(&token);
    let pod = fixture.pod("certs").with_secrets(&[]).with(TOKENS, &tokens);
    for pod in [pod.clone(), pod.clone().with("authentication", "pod")] {
        let status = fixture.refused(&pod, Code::Unauthenticated).await;
        assert!(status.message().contains("trust.contextTokens"), "{status:?}");
    }
    fixture.configure_realm(&realm, "", "trust: { contextTokens: true }\n");
    fixture.restart().await;
    let target = fixture.publish(&pod).await;
    assert_eq!(tree(&target)["keystore.jks"], "keystore");
    // Tokens among the secrets count before those in the context.
    let stranger = realm.reader(&fixture, "stranger", "other/").await;
    let secret = realm.issue(&stranger);
    let both = fixture.pod_with("certs", &secret).with(TOKENS, &tokens);
    fixture.refused(&both, Code::PermissionDenied).await;
    assert!(!fixture.home.log().contains(&tokens), "a token is in the log");
}

pub(crate) async fn a_token_for_another_audience_is_refused(mut fixture: Fixture) {
    let realm = fixture.realm("").await;
    fixture.put_certificates().await;
    let good = realm.reader(&fixture, "driver", "certs/").await;
    let other = good.clone().for_audience("vault");
    let both = realm.issuer().issue(&[good.clone(), other.clone()]);
    // The service is told by nobody which token is for it, so it gets none.
    let status = fixture.refused(&fixture.pod_with("certs", &both), Code::InvalidArgument).await;
    assert!(status.message().contains("\"s3view\", \"vault\""), "{status:?}");
    let wrong = fixture.pod_with("certs", &both).with("audience", "vault");
    let status = fixture.refused(&wrong, Code::Unauthenticated).await;
    assert!(status.message().contains("audience \"vault\""), "{status:?}");
    let missing = fixture.pod_with("certs", &both).with("audience", "sts");
    let status = fixture.refused(&missing, Code::InvalidArgument).await;
    assert!(status.message().contains("tokenRequests"), "{status:?}");
    let right = fixture.pod_with("certs", &both).with("audience", "s3view");
    fixture.publish(&right).await;
    // The one that works lets no other in.
    fixture.refused(&wrong, Code::Unauthenticated).await;
    fixture.configure_realm(&realm, "audience: s3view", "");
    fixture.restart().await;
    fixture.publish(&fixture.pod_with("certs", &both)).await;
}

pub(crate) async fn a_token_that_another_signed_is_refused(mut fixture: Fixture) {
    let realm = fixture.realm("").await;
    fixture.put_certificates().await;
    let token = realm.reader(&fixture, "driver", "certs/").await;
    let forged = Issuer::start().issue(std::slice::from_ref(&token));
    let pod = fixture.pod_with("certs", &forged);
    let status = fixture.kubelet.publish(&pod).await.expect_err("it is forged");
    assert!(matches!(status.code(), Code::Unauthenticated | Code::PermissionDenied), "{status:?}");
    fixture.publish(&fixture.pod_with("certs", &realm.issue(&token))).await;
}

pub(crate) async fn an_expired_token_is_told(mut fixture: Fixture) {
    let realm = fixture.realm("").await;
    fixture.put_certificates().await;
    let token = realm.reader(&fixture, "driver", "certs/").await.living(Duration::ZERO);
    let pod = fixture.pod_with("certs", &realm.issue(&token));
    let status = fixture.refused(&pod, Code::Unauthenticated).await;
    let message = status.message();
    assert!(message.contains("expired at 20") && message.contains("no newer one"), "{message}");
}

pub(crate) async fn credentials_are_renewed_with_the_newest_token(mut fixture: Fixture) {
    let realm = fixture.realm("").await;
    fixture.put("r/file", "one").await;
    let token = realm.reader(&fixture, "driver", "r/").await;
    let short = token.clone().living(10 * SECOND);
    let pod = fixture.pod_with("r", &realm.issue(&short)).with("refresh", "200ms");
    let target = fixture.publish(&pod).await;
    let ends = std::time::Instant::now() + 11 * SECOND;
    let newer = pod.clone().with_secrets(&[(TOKENS, &realm.issue(&token))]);
    fixture.publish(&newer).await;
    // An older one that comes late takes nothing back.
    fixture.publish(&pod).await;
    while std::time::Instant::now() < ends {
        let (message, _) = fixture.condition(&pod).await;
        assert!(!message.contains("failed"), "{message}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    fixture.put("r/file", "two").await;
    shows(&target, &files(&[("file", "two")])).await;
    if let Realm::Own(_, sts) = &realm {
        assert_eq!(sts.exchanges(), 2, "the first token, and the newer one");
    }
}

pub(crate) async fn a_token_that_nobody_renews_ends_the_refresh_alone(mut fixture: Fixture) {
    let realm = fixture.realm("").await;
    fixture.put("r/file", "one").await;
    let token = realm.reader(&fixture, "driver", "r/").await;
    let short = token.clone().living(3 * SECOND);
    let pod = fixture.pod_with("r", &realm.issue(&short)).with("refresh", "200ms");
    let target = fixture.publish(&pod).await;
    let message = fixture.says(&pod, "expired at 20").await;
    assert!(message.contains("no newer one"), "{message}");
    // Brought again, it is no better, and the republish is OK all the same.
    fixture.publish(&pod).await;
    fixture.put("r/file", "two").await;
    assert_eq!(tree(&target), files(&[("file", "one")]));
    fixture.publish(&pod.clone().with_secrets(&[(TOKENS, &realm.issue(&token))])).await;
    shows(&target, &files(&[("file", "two")])).await;
    let (message, abnormal) = fixture.condition(&pod).await;
    assert!(!message.contains("expired") && !abnormal, "{message}");
}

pub(crate) async fn many_pods_of_one_account_are_one_exchange(mut fixture: Fixture) {
    let realm = fixture.realm("").await;
    let sts = realm.sts();
    let token = Token::of("spark", "executor");
    // Each pod has a token of its own, and asks S3 something else.
    let mut pods = Vec::new();
    for number in 0..10 {
        fixture.put(&format!("p{number}/file"), "content").await;
        pods.push(fixture.pod_with(&format!("p{number}"), &realm.issue(&token)));
    }
    sts.set_latency(SECOND / 5);
    sts.set_down(true);
    join_all(pods.iter().map(|pod| fixture.kubelet.publish(pod))).await;
    let failed = sts.exchanges();
    assert!(failed < 20, "{failed} exchanges, and four attempts of each pod would be 40");
    sts.set_down(false);
    fixture.embedded().reset_requests();
    join_all(pods.iter().map(|pod| fixture.publish(pod))).await;
    assert_eq!(sts.exchanges() - failed, 1);
    sts.set_latency(Duration::ZERO);
    // They are one principal, so what one has fetched is there for all.
    let again = fixture.pod_with("p0", &realm.issue(&token));
    fixture.publish(&again).await;
    assert_eq!(fixture.embedded().requests().gets(), 10);
    // A republish with a newer token asks nobody anything.
    fixture.embedded().reset_requests();
    for pod in &pods {
        fixture.publish(&pod.clone().with_secrets(&[(TOKENS, &realm.issue(&token))])).await;
    }
    assert_eq!(sts.exchanges() - failed, 1);
    assert_eq!(fixture.embedded().requests().total(), 0);
    // Another account is somebody else.
    let other = realm.issue(&Token::of("spark", "other"));
    fixture.publish(&fixture.pod_with("p0", &other)).await;
    assert_eq!(sts.exchanges() - failed, 2);
    assert_eq!(fixture.embedded().requests().gets(), 1, "what others fetched proves nothing");
    // When the last volume of an account is gone, so are its credentials.
    for pod in pods.iter().chain([&again]) {
        fixture.unpublish(pod).await;
    }
    fixture.publish(&pods[0]).await;
    assert_eq!(sts.exchanges() - failed, 3);
}

pub(crate) async fn credentials_are_renewed_before_they_end(mut fixture: Fixture) {
    let realm = fixture.realm("").await;
    realm.sts().set_life(4 * SECOND);
    fixture.put("r/file", "one").await;
    let token = realm.issue(&Token::of("spark", "driver"));
    let pod = fixture.pod_with("r", &token).with("refresh", "100ms");
    let target = fixture.publish(&pod).await;
    eventually("a third exchange", || (realm.sts().exchanges() >= 3).then_some(())).await;
    fixture.put("r/file", "two").await;
    shows(&target, &files(&[("file", "two")])).await;
    let refused = fixture.embedded().log().into_iter().filter(|logged| logged.status == Some(403));
    assert_eq!(refused.count(), 0, "no request was sent with credentials that had ended");
    assert!(realm.sts().exchanges() <= 4, "each half of a life brings one");
}

pub(crate) async fn a_token_service_that_is_down_is_noticed_late(mut fixture: Fixture) {
    let realm = fixture.realm("").await;
    let sts = realm.sts();
    fixture.put("r/file", "one").await;
    let token = realm.issue(&Token::of("spark", "driver"));
    sts.set_down(true);
    let pod = fixture.pod_with("r", &token).with("refresh", "100ms");
    let status = fixture.refused(&pod, Code::Unavailable).await;
    assert!(status.message().contains("STS http://127.0.0.1"), "{status:?}");
    sts.set_down(false);
    sts.set_life(8 * SECOND);
    let target = fixture.publish(&pod).await;
    sts.set_down(true);
    let before = sts.exchanges();
    eventually("an attempt to renew", || (sts.exchanges() > before).then_some(())).await;
    fixture.put("r/file", "two").await;
    shows(&target, &files(&[("file", "two")])).await;
    fixture.says(&pod, "the service answered status 503").await;
    sts.set_down(false);
    fixture.put("r/file", "three").await;
    shows(&target, &files(&[("file", "three")])).await;
}

pub(crate) async fn a_role_is_asked_for(mut fixture: Fixture) {
    const ROLE: &str = "arn:aws:iam::123456789012:role/reader";
    let realm = fixture.realm("").await;
    realm.sts().set_role(ROLE);
    fixture.put_certificates().await;
    let tokens = realm.issue(&Token::of("spark", "driver"));
    let pod = fixture.pod_with("certs", &tokens);
    let status = fixture.refused(&pod, Code::PermissionDenied).await;
    assert!(status.message().contains("trust policy"), "{status:?}");
    fixture.publish(&pod.clone().with("roleArn", ROLE)).await;
    let other = fixture.pod_with("certs", &tokens).with("roleArn", "arn:aws:iam::1:role/other");
    fixture.refused(&other, Code::PermissionDenied).await;
    // The endpoint's role is that of volumes that name none; keys have none.
    fixture.configure_realm(&realm, &format!("roleArn: '{ROLE}'"), "");
    fixture.restart().await;
    fixture.publish(&fixture.pod_with("certs", &tokens)).await;
    fixture.publish(&fixture.pod("certs")).await;
    let keys = fixture.pod("certs").with("roleArn", ROLE);
    let status = fixture.refused(&keys, Code::InvalidArgument).await;
    assert!(status.message().contains("authentication \"pod\" only"), "{status:?}");
}

pub(crate) async fn aws_needs_a_role(fixture: Fixture) {
    let config = "endpoints: { aws: { url: https://s3.eu-west-1.amazonaws.com } }\nstore: { memory: { size: 64Mi, allowSwap: true }, disk: { path: DISK, size: 256Mi } }\n";
    let mut fixture = fixture;
    fixture.home.configure(config);
    fixture.restart().await;
    let tokens = Issuer::start().issue(&[Token::of("spark", "driver")]);
    let pod = fixture.pod_with("certs", &tokens);
    let status = fixture.refused(&pod, Code::InvalidArgument).await;
    assert!(status.message().contains("roleArn: is required for AWS"), "{status:?}");
}

pub(crate) async fn a_token_goes_where_the_policy_says(mut fixture: Fixture) {
    let realm = fixture.realm("").await;
    fixture.put_certificates().await;
    let url = realm.sts().url().to_owned();
    let port = url.rsplit(':').next().unwrap();
    let tokens = realm.issue(&Token::of("spark", "driver"));
    // Not the configured one: a service that only the volume names.
    let pod = fixture.pod_with("certs", &tokens).with("stsEndpoint", &url);
    let status = fixture.refused(&pod, Code::PermissionDenied).await;
    assert!(status.message().contains("policy.endpointUrls"), "{status:?}");
    let wildcard = format!(
        "policy: {{ endpointUrls: ['http://127.0.0.*:{port}', 'http://local*:{port}'] }}\n"
    );
    fixture.reconfigure(&wildcard).await;
    fixture.refused(&pod, Code::PermissionDenied).await;
    let by_name = pod.clone().with("stsEndpoint", &format!("http://localhost:{port}"));
    let status = fixture.refused(&by_name, Code::Unavailable).await;
    assert!(status.message().contains("STS http://localhost"), "{status:?}");
    assert_eq!(realm.sts().exchanges(), 0);
    fixture.reconfigure(&format!("policy: {{ endpointUrls: ['{url}'] }}\n")).await;
    fixture.publish(&pod).await;
    assert_eq!(realm.sts().exchanges(), 1);
}

pub(crate) async fn nobody_reads_a_public_bucket(mut fixture: Fixture) {
    fixture.put_certificates().await;
    let pod = fixture.pod("certs").with_secrets(&[]).with("authentication", "anonymous");
    let status = fixture.refused(&pod, Code::PermissionDenied).await;
    assert!(status.message().contains("policy.authentication"), "{status:?}");
    fixture.reconfigure("policy: { authentication: [anonymous] }\n").await;
    // The bucket is not public yet.
    fixture.refused(&pod, Code::PermissionDenied).await;
    fixture.embedded().rights().grant(ANONYMOUS, &fixture.bucket, "certs/");
    let target = fixture.publish(&pod).await;
    assert_eq!(tree(&target)["keystore.jks"], "keystore");
    fixture.refused(&fixture.pod("certs"), Code::PermissionDenied).await;
}

pub(crate) async fn tokens_appear_nowhere(mut fixture: Fixture) {
    fixture.home.set_log_level("trace");
    let realm = fixture.realm("trust: { contextTokens: true }\n").await;
    fixture.put_certificates().await;
    let tokens = realm.issue(&Token::of("spark", "driver"));
    let good = fixture.pod_with("certs", &tokens);
    fixture.publish(&good).await;
    let other = realm.issue(&Token::of("spark", "other").for_audience("vault"));
    let mut messages = Vec::new();
    for (tokens, code) in [
        (other.as_str(), Code::Unauthenticated),
        ("{\"a\":{\"token\":\"h.MARKED.s\"}}", Code::InvalidArgument),
        ("MARKED", Code::InvalidArgument),
    ] {
        let secret = fixture.pod_with("certs", tokens);
        let context = fixture.pod("certs").with_secrets(&[]).with(TOKENS, tokens);
        for pod in [secret, context] {
            messages.push(fixture.refused(&pod, code).await.message().to_owned());
        }
    }
    let registry = fixture.home.state_dir().join("memory/registry");
    let entries = std::fs::read_dir(registry).unwrap();
    messages.extend(entries.map(|entry| std::fs::read_to_string(entry.unwrap().path()).unwrap()));
    messages.push(fixture.home.log());
    // Neither the beginning of a token nor its end; the service quotes one that it refuses.
    let ends = |tokens: &str| {
        let tokens: serde_json::Value = serde_json::from_str(tokens).unwrap();
        let token = tokens.as_object().unwrap().values().next().unwrap()["token"].clone();
        let token = token.as_str().unwrap().to_owned();
        [token[..100].to_owned(), token[token.len() - 40..].to_owned()]
    };
    for secret in [["MARKED".to_owned(), tokens.clone()], ends(&tokens), ends(&other)].concat() {
        assert!(messages.iter().all(|text| !text.contains(&secret)), "{secret} is told");
    }
}
