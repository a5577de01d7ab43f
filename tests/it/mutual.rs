//! Endpoints that want to know their clients by TLS (mutual TLS), and CA bundles of Secrets.
//!
//! A door that demands certificates stands before the server; the server itself is asked as ever.

use std::time::{Duration, Instant};

use s3view::task::spawn_owned;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};
use tonic::Code;

use crate::{
    fixture::{Fixture, files, tree},
    refresh::shows,
    support::{
        issuer::{AUDIENCE, Issuer, Sts, TOKENS, Token},
        kubelet::Pod,
        s3::ANONYMOUS,
        server::{CREDENTIALS, Server},
        tls::{Authority, Door, NOWHERE, Pair, Passed, Proxy, Wants},
    },
};

/// The seed's keys, as its Secret has them.
const KEYS: [(&str, &str); 2] = [("accesskey", CREDENTIALS.0), ("secretkey", CREDENTIALS.1)];

/// Who is trusted in a case: one authority for servers, and one for clients.
struct Realm {
    servers: Authority,
    clients: Authority,
    door: Door,
}

impl Fixture {
    /// Puts a door before the server that wants a pair, and starts the plugin anew for it.
    async fn behind_a_door(&mut self, more: &str) -> Realm {
        let (servers, clients) = (Authority::new("servers"), Authority::new("clients"));
        let door = Door::open(&self.server.url(), &servers, Wants::Pair(&clients));
        let realm = Realm { servers, clients, door };
        self.configure_door(&realm, &realm.door.url(), more).await;
        realm
    }

    /// `url` is what the endpoint is configured with.
    async fn configure_door(&mut self, realm: &Realm, url: &str, more: &str) {
        let bundle = self.home.path().join("servers.crt");
        realm.servers.write(&bundle);
        let config = Self::config(&self.server, &format!("limits: {{ minRefresh: 50ms }}\n{more}"));
        let endpoint = format!("{url}\n    caBundle: {}", bundle.display());
        self.home.configure(&config.replacen(&self.server.url(), &endpoint, 1));
        self.restart().await;
    }

    /// A pod with the seed's keys and a pair.
    fn pod_showing(&self, prefix: &str, pair: &Pair) -> Pod {
        self.pod(prefix).with_secrets(&[&KEYS[..], &pair.secret()].concat())
    }
}

impl Realm {
    fn pair(&self, name: &str) -> Pair {
        self.clients.issue(name)
    }
}

pub(crate) async fn a_pair_opens_the_door(mut fixture: Fixture) {
    let realm = fixture.behind_a_door("").await;
    fixture.put_certificates().await;
    let pair = realm.pair("team");
    for view in ["tmpfs", "disk"] {
        let pod = fixture.pod_showing("certs", &pair).with("view", view);
        let target = fixture.publish(&pod).await;
        assert_eq!(tree(&target)["keystore.jks"], "keystore");
    }
    assert!(realm.door.passed(Some(&pair)).connections > 0);
    assert_eq!(realm.door.passed(None), Passed::default());
}

pub(crate) async fn a_secret_may_bring_the_authority_too(mut fixture: Fixture) {
    let realm = fixture.behind_a_door("").await;
    fixture.put_certificates().await;
    let config = Fixture::config(&fixture.server, "");
    fixture.home.configure(&config.replacen(&fixture.server.url(), &realm.door.url(), 1));
    fixture.restart().await;
    let pair = realm.pair("team");
    let with = |authority: &Authority| {
        let secrets = [&KEYS[..], &pair.secret(), &[("ca.crt", authority.pem())]].concat();
        fixture.pod("certs").with_secrets(&secrets)
    };
    // The system's roots do not vouch for the door, nor does another authority.
    let unknown = [fixture.pod_showing("certs", &pair), with(&realm.clients)];
    for pod in &unknown {
        let status = fixture.refused(pod, Code::FailedPrecondition).await;
        assert!(status.message().contains("ca.crt in the Secret"), "{status:?}");
    }
    let target = fixture.publish(&with(&realm.servers)).await;
    assert_eq!(tree(&target)["keystore.jks"], "keystore");
    // What one Secret trusts is trusted for nobody else.
    fixture.refused(&unknown[0], Code::FailedPrecondition).await;
    let garbled = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n";
    let secrets = [&KEYS[..], &[("ca.crt", garbled)]].concat();
    let pod = fixture.pod("certs").with_secrets(&secrets);
    let status = fixture.refused(&pod, Code::InvalidArgument).await;
    assert!(status.message().contains("Secret key ca.crt"), "{status:?}");
}

pub(crate) async fn a_bundle_of_a_secret_needs_no_pair(mut fixture: Fixture) {
    let (servers, clients) = (Authority::new("servers"), Authority::new("clients"));
    let door = Door::open(&fixture.server.url(), &servers, Wants::Maybe(&clients));
    fixture.put_certificates().await;
    let config = Fixture::config(&fixture.server, "");
    fixture.home.configure(&config.replacen(&fixture.server.url(), &door.url(), 1));
    fixture.restart().await;
    let status = fixture.refused(&fixture.pod("certs"), Code::FailedPrecondition).await;
    assert!(status.message().contains("ca.crt in the Secret"), "{status:?}");
    let secrets = [&KEYS[..], &[("ca.crt", servers.pem())]].concat();
    let target = fixture.publish(&fixture.pod("certs").with_secrets(&secrets)).await;
    assert_eq!(tree(&target)["keystore.jks"], "keystore");
    assert!(door.passed(None).connections > 0);
}

pub(crate) async fn who_is_refused_is_told_which_keys_to_change(mut fixture: Fixture) {
    let realm = fixture.behind_a_door("").await;
    fixture.put_certificates().await;
    let old = Door::open(&fixture.server.url(), &realm.servers, Wants::OldPair(&realm.clients));
    let stranger = Authority::new("strangers").issue("stranger");
    let expired = realm.clients.issue_expired("late");
    for door in [&realm.door, &old] {
        fixture.configure_door(&realm, &door.url(), "").await;
        for (pod, text) in [
            (fixture.pod("certs"), "tls.crt and tls.key"),
            (fixture.pod_showing("certs", &stranger), "does not know the CA"),
            (fixture.pod_showing("certs", &expired), "has expired"),
        ] {
            let status = fixture.refused(&pod, Code::FailedPrecondition).await;
            let message = status.message();
            assert!(message.contains(&door.url()), "{message}");
            assert!(message.contains(text) && message.contains("tls.crt"), "{message}");
        }
        fixture.publish(&fixture.pod_showing("certs", &realm.pair("team"))).await;
        assert_eq!(door.passed(Some(&stranger)), Passed::default());
    }
}

pub(crate) async fn a_gateway_that_refuses_in_http_is_understood(mut fixture: Fixture) {
    // As nginx does: the handshake succeeds, and every answer is a page of this kind.
    let page = "<html><head><title>400 No required SSL certificate was sent</title></head></html>";
    let length = page.len();
    let answer = format!(
        "HTTP/1.1 400 Bad Request\r\nContent-Type: text/html\r\nContent-Length: {length}\r\n\
         Connection: close\r\n\r\n{page}"
    );
    let gateway = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", gateway.local_addr().unwrap());
    let _serving = spawn_owned(async move {
        while let Ok((mut client, _)) = gateway.accept().await {
            let mut request = vec![0; 16 << 10];
            assert!(client.read(&mut request).await.unwrap() > 0);
            client.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    let config = Fixture::config(&fixture.server, "").replacen(&fixture.server.url(), &url, 1);
    fixture.home.configure(&config);
    fixture.restart().await;
    let key = format!("[{{ bucket: {}, key: a }}]", fixture.bucket);
    for pod in [fixture.pod("certs"), Pod::new("p", &[("sources", &key)])] {
        let status = fixture.refused(&pod, Code::FailedPrecondition).await;
        assert!(status.message().contains("wants a client certificate"), "{status:?}");
    }
}

pub(crate) async fn a_pair_that_is_none_is_invalid(mut fixture: Fixture) {
    let realm = fixture.behind_a_door("").await;
    fixture.put_certificates().await;
    let (pair, other) = (realm.pair("team"), realm.pair("other"));
    let [certificate, key] = pair.secret();
    let cut = &pair.key[..pair.key.len() / 2];
    for (secrets, text) in [
        (vec![certificate], "Secret key tls.crt: stands alone; add tls.key"),
        (vec![key], "Secret key tls.key: stands alone; add tls.crt"),
        (vec![certificate, other.secret()[1]], "Secret key tls.key: does not belong"),
        (vec![certificate, ("tls.key", cut)], "Secret key tls.key: must hold one private key"),
        (vec![("tls.crt", "none"), key], "Secret key tls.crt: must contain a certificate"),
    ] {
        let pod = fixture.pod("certs").with_secrets(&[&KEYS[..], &secrets].concat());
        let status = fixture.refused(&pod, Code::InvalidArgument).await;
        assert!(status.message().contains(text), "{status:?}");
    }
    assert_eq!(realm.door.knocks(), 0, "S3 is asked nothing");
}

pub(crate) async fn pods_with_different_pairs_share_nothing(mut fixture: Fixture) {
    let realm = fixture.behind_a_door("").await;
    fixture.put_certificates().await;
    let (one, other) = (realm.pair("one"), realm.pair("other"));
    fixture.publish(&fixture.pod_showing("certs", &one)).await;
    let by_one = realm.door.passed(Some(&one));
    assert_eq!(
        (fixture.embedded().requests().lists(), fixture.embedded().requests().gets()),
        (1, 3)
    );
    // The same keys with another pair are somebody else: what the first one read proves nothing.
    fixture.embedded().reset_requests();
    fixture.publish(&fixture.pod_showing("certs", &other)).await;
    let log = fixture.embedded().log();
    let gets = log.iter().filter(|logged| logged.call.operation == "GetObject");
    let ranges: Vec<_> = gets.map(|logged| logged.call.range.clone()).collect();
    assert_eq!(ranges, vec![Some("bytes=0-0".to_owned()); 3]);
    assert_eq!(fixture.embedded().requests().lists(), 1);
    assert_eq!(realm.door.passed(Some(&one)).bytes, by_one.bytes, "nothing went by the first pair");
    let by_other = realm.door.passed(Some(&other));
    assert!(by_other.connections > 0 && by_other.bytes > 0);
    // A second pod with the first pair finds what the first one proved, and the open connections.
    fixture.embedded().reset_requests();
    fixture.publish(&fixture.pod_showing("certs", &one)).await;
    assert_eq!(fixture.embedded().requests().total(), 1);
    assert!(realm.door.passed(Some(&one)).connections <= 3, "three objects took at most three");
    assert_eq!(realm.door.passed(Some(&other)).bytes, by_other.bytes);
}

pub(crate) async fn a_rotated_pair_is_used_at_once(mut fixture: Fixture) {
    let realm = fixture.behind_a_door("").await;
    fixture.put("r/file", "one").await;
    let (first, second) = (realm.pair("team"), realm.pair("team"));
    let pod = fixture.pod_showing("r", &first).with("refresh", "200ms");
    let target = fixture.publish(&pod).await;
    let renewed = Pod { secrets: fixture.pod_showing("r", &second).secrets, ..pod.clone() };
    fixture.publish(&renewed).await;
    let is_used = || (realm.door.passed(Some(&second)).connections > 0).then_some(());
    crate::refresh::eventually("the second pair", is_used).await;
    fixture.put("r/file", "two").await;
    shows(&target, &files(&[("file", "two")])).await;
    fixture.says_no_more(&pod, "cannot be used").await;
    // A request by the first pair that was under way ends meanwhile.
    fixture.put("r/file", "three").await;
    shows(&target, &files(&[("file", "three")])).await;
    let by_first = realm.door.passed(Some(&first));
    fixture.put("r/file", "four").await;
    shows(&target, &files(&[("file", "four")])).await;
    assert_eq!(realm.door.passed(Some(&first)).bytes, by_first.bytes, "the first pair is gone");
}

pub(crate) async fn a_bad_rotation_keeps_the_last_pair(mut fixture: Fixture) {
    let realm = fixture.behind_a_door("").await;
    fixture.put("r/file", "one").await;
    let pair = realm.pair("team");
    let pod = fixture.pod_showing("r", &pair).with("refresh", "200ms");
    let target = fixture.publish(&pod).await;
    let with = |secrets: &[(&str, &str)]| pod.clone().with_secrets(&[&KEYS, secrets].concat());
    let stranger = Authority::new("strangers").issue("stranger");
    let bad = [
        (with(&pair.secret()[..1]), "tls.crt: stands alone; add tls.key"),
        (with(&[pair.secret()[0], stranger.secret()[1]]), "tls.key: does not belong"),
        (with(&stranger.secret()), "does not know the CA"),
        (with(&[]), "wants a client certificate"),
    ];
    for (number, (renewed, text)) in bad.iter().enumerate() {
        fixture.publish(renewed).await;
        let message = fixture.says(&pod, text).await;
        assert!(!message.contains("PRIVATE"), "{message}");
        // It goes on with the pair that works.
        let content = number.to_string();
        fixture.put("r/file", content.clone()).await;
        shows(&target, &files(&[("file", &content)])).await;
        fixture.publish(&pod).await;
        fixture.says_no_more(&pod, text).await;
    }
    assert_eq!(realm.door.passed(Some(&stranger)), Passed::default());
    assert_eq!(realm.door.passed(None), Passed::default());
}

pub(crate) async fn nobody_may_show_a_pair(mut fixture: Fixture) {
    let realm = fixture.behind_a_door("policy: { authentication: [anonymous] }\n").await;
    fixture.put_certificates().await;
    fixture.embedded().rights().grant(ANONYMOUS, &fixture.bucket, "certs/");
    let pair = realm.pair("team");
    let nobody = || fixture.pod("certs").with("authentication", "anonymous");
    let target = fixture.publish(&nobody().with_secrets(&pair.secret())).await;
    assert_eq!(tree(&target)["keystore.jks"], "keystore");
    fixture.refused(&nobody().with_secrets(&[]), Code::FailedPrecondition).await;
    let log = fixture.embedded().log();
    assert!(log.iter().all(|logged| logged.call.access_key.is_none()));
}

pub(crate) async fn the_driver_may_show_a_pair(mut fixture: Fixture) {
    fixture.home.set_env(&[
        ("AWS_ACCESS_KEY_ID", CREDENTIALS.0),
        ("AWS_SECRET_ACCESS_KEY", CREDENTIALS.1),
        ("HOME", "/nonexistent"),
    ]);
    let grant = format!("[{{ namespace: spark, bucket: {} }}]", fixture.bucket);
    let policy = format!("policy: {{ authentication: [driver], driverCredentials: {grant} }}\n");
    let more = format!("trust: {{ podInfo: true }}\n{policy}");
    let realm = fixture.behind_a_door(&more).await;
    fixture.put_certificates().await;
    let (one, other) = (realm.pair("one"), realm.pair("other"));
    fixture.publish(&fixture.pod("certs").with_secrets(&one.secret())).await;
    fixture.embedded().reset_requests();
    fixture.publish(&fixture.pod("certs").with_secrets(&other.secret())).await;
    assert_eq!(fixture.embedded().requests().gets(), 3, "what one proved counts for one alone");
    let without = fixture.pod("certs").with_secrets(&[]);
    fixture.refused(&without, Code::FailedPrecondition).await;
}

pub(crate) async fn without_tls_a_pair_makes_no_difference(fixture: Fixture) {
    fixture.put_certificates().await;
    let pair = Authority::new("clients").issue("team");
    fixture.publish(&fixture.pod_showing("certs", &pair)).await;
    fixture.publish(&fixture.pod("certs")).await;
    assert_eq!(fixture.embedded().requests().gets(), 3, "both are the same principal");
}

pub(crate) async fn a_pair_goes_through_a_proxy(mut fixture: Fixture) {
    let realm = fixture.behind_a_door("").await;
    fixture.put_certificates().await;
    let proxy = Proxy::start(&realm.door);
    let env = |none: &str| [("HTTPS_PROXY", proxy.url()), ("NO_PROXY", none.to_owned())];
    for (none, is_used) in [("elsewhere.invalid", true), (".invalid", false)] {
        let env = env(none);
        let env: Vec<_> = env.iter().map(|(name, value)| (*name, value.as_str())).collect();
        fixture.home.set_env(&env);
        fixture.configure_door(&realm, &format!("https://{NOWHERE}:9000"), "").await;
        let pod = fixture.pod_showing("certs", &realm.pair("team"));
        if is_used {
            fixture.publish(&pod).await;
        } else {
            fixture.refused(&pod, Code::Unavailable).await;
        }
    }
    // A proxy that speaks TLS itself could see the pair as well as the endpoint.
    let guarded = Door::open(&proxy.url(), &realm.servers, Wants::Maybe(&realm.clients));
    fixture.home.set_env(&[("HTTPS_PROXY", &guarded.url())]);
    fixture.restart().await;
    let pair = realm.pair("other");
    fixture.publish(&fixture.pod_showing("certs", &pair)).await;
    assert!(realm.door.passed(Some(&pair)).connections > 0);
    assert!(guarded.passed(None).connections > 0);
    assert_eq!(guarded.passed(Some(&pair)), Passed::default());
    let asked = proxy.asked();
    assert!(!asked.is_empty());
    assert!(
        asked.iter().all(|line| *line == format!("CONNECT {NOWHERE}:9000 HTTP/1.1")),
        "{asked:?}"
    );
}

pub(crate) async fn an_endpoint_that_says_nothing_is_given_up(mut fixture: Fixture) {
    let realm = fixture.behind_a_door("").await;
    // Connections stand, and no handshake comes.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap();
    let url = format!("https://{address}\n    timeouts: {{ connect: 300ms }}");
    fixture.configure_door(&realm, &url, "").await;
    let began = Instant::now();
    let pod = fixture.pod_showing("certs", &realm.pair("team"));
    let status = fixture.refused(&pod, Code::Unavailable).await;
    assert!(status.message().contains("cannot be reached"), "{status:?}");
    // Four attempts; without the limit each of them would take 20 s.
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
}

pub(crate) async fn a_pair_leads_nowhere_else(mut fixture: Fixture) {
    let realm = fixture.behind_a_door("").await;
    fixture.put_certificates().await;
    let port = realm.door.port();
    let policy =
        |pattern: &str| format!("policy: {{ endpointUrls: ['https://{pattern}:{port}'] }}\n");
    let secrets = [&KEYS[..], &[("ca.crt", realm.servers.pem())]].concat();
    let pair = realm.pair("team");
    let secrets = [&secrets[..], &pair.secret()].concat();
    let pod = fixture.pod("certs").with("endpoint", &format!("https://localhost:{port}"));
    let pod = pod.with_secrets(&secrets);
    // A wildcard never leads to the node itself.
    fixture.configure_door(&realm, &realm.door.url(), &policy("local*")).await;
    fixture.refused(&pod, Code::Unavailable).await;
    assert_eq!(realm.door.knocks(), 0);
    fixture.configure_door(&realm, &realm.door.url(), &policy("localhost")).await;
    fixture.publish(&pod).await;
}

pub(crate) async fn a_token_service_elsewhere_is_shown_nothing(mut fixture: Fixture) {
    let (servers, clients) = (Authority::new("servers"), Authority::new("clients"));
    let (issuer, url) = (Issuer::start(), fixture.server.url());
    let door = Door::open(&url, &servers, Wants::Pair(&clients));
    let realm = Realm { servers, clients, door };
    let pair = realm.pair("team");
    let tokens = issuer.issue(&[Token::of("spark", "driver")]);
    fixture.put_certificates().await;
    let sts = Sts::start(&issuer, fixture.embedded().shared_rights());
    // Another port of the same host: vouched for by the same bundle, and yet not the endpoint.
    let beside = Door::open(sts.url(), &realm.servers, Wants::Maybe(&realm.clients));
    let url = format!("{}\n    sts: {{ url: '{}' }}", realm.door.url(), beside.url());
    fixture.configure_door(&realm, &url, "").await;
    let secrets = [&[(TOKENS, tokens.as_str())][..], &pair.secret()].concat();
    let target = fixture.publish(&fixture.pod("certs").with_secrets(&secrets)).await;
    assert_eq!(tree(&target)["keystore.jks"], "keystore");
    assert_eq!(sts.exchanges(), 1);
    assert_eq!(beside.passed(Some(&pair)), Passed::default());
    assert!(beside.passed(None).connections > 0);
    // Who shows another pair makes an exchange of their own.
    let other = realm.pair("other");
    let secrets = [&[(TOKENS, tokens.as_str())][..], &other.secret()].concat();
    fixture.publish(&fixture.pod("certs").with_secrets(&secrets)).await;
    assert_eq!(sts.exchanges(), 2);
}

/// On MinIO, which is its own token service.
pub(crate) async fn the_endpoint_as_token_service_is_shown_the_pair(mut fixture: Fixture) {
    let realm = fixture.behind_a_door("").await;
    fixture.put_certificates().await;
    let Server::Minio(minio) = &fixture.server else { panic!("this case is for MinIO") };
    let name = format!("{}-mutual", fixture.bucket);
    let policy = serde_json::json!({ "Version": "2012-10-17", "Statement": [{
        "Effect": "Allow",
        "Action": ["s3:ListBucket", "s3:GetObject"],
        "Resource": [
            format!("arn:aws:s3:::{}", fixture.bucket),
            format!("arn:aws:s3:::{}/*", fixture.bucket),
        ],
    }] });
    minio.add_policy(&fixture.server.client(), &name, &policy.to_string()).await;
    let token = Token { policy: Some(name.clone()), ..Token::of("spark", &name) };
    let token = token.for_audience(AUDIENCE).living(Duration::from_hours(1));
    let tokens = minio.issuer().issue(&[token]);
    let pair = realm.pair("team");
    let secrets = [&[(TOKENS, tokens.as_str())][..], &pair.secret()].concat();
    let target = fixture.publish(&fixture.pod("certs").with_secrets(&secrets)).await;
    assert_eq!(tree(&target)["keystore.jks"], "keystore");
    let without = fixture.pod("certs").with_secrets(&[(TOKENS, &tokens)]);
    let status = fixture.refused(&without, Code::FailedPrecondition).await;
    assert!(status.message().contains("STS https://"), "{status:?}");
    assert!(status.message().contains("tls.crt and tls.key"), "{status:?}");
}
