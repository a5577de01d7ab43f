//! The driver's own credentials: for whom the policy names, and from where the SDK finds them.

use std::time::Duration;

use tonic::Code;

use crate::{
    fixture::{Fixture, files, tree},
    identity::{Realm, SECOND},
    refresh::{eventually, shows},
    support::{
        issuer::{Issuer, TOKENS, Token},
        kubelet::Pod,
        surroundings::{CONTAINER_TOKEN, Surroundings},
        tls::Authority,
    },
};

/// The driver's own credentials, and no other way to some.
const DRIVER: [(&str, &str); 4] = [
    ("AWS_ACCESS_KEY_ID", "driver"),
    ("AWS_SECRET_ACCESS_KEY", "MARKED-DRIVER-SECRET"),
    ("AWS_EC2_METADATA_DISABLED", "true"),
    ("HOME", "/nonexistent"),
];

impl Fixture {
    /// Gives the plugin credentials of its own, and a policy for them.
    async fn driver(&mut self, trust: &str, grants: &str) {
        self.home.set_env(&DRIVER);
        self.embedded().rights().add_credential("driver", "MARKED-DRIVER-SECRET");
        let grants = grants.replace("BUCKET", &self.bucket);
        self.reconfigure(&format!(
            "limits: {{ minRefresh: 50ms }}\ntrust: {{ {trust} }}\npolicy:\n  \
             authentication: [secret, pod, driver]\n  driverCredentials: [{grants}]\n"
        ))
        .await;
    }
}

pub(crate) async fn the_driver_reads_what_the_policy_grants(mut fixture: Fixture) {
    fixture
        .driver(
            "podInfo: true",
            "{ namespace: spark, serviceAccount: spark, bucket: BUCKET, prefix: certs }",
        )
        .await;
    fixture.put_certificates().await;
    fixture.put("other/file", "hidden").await;
    let pod = fixture.pod("certs").with_secrets(&[]);
    let target = fixture.publish(&pod).await;
    assert_eq!(tree(&target)["keystore.jks"], "keystore");
    let named = fixture.pod("certs/sub").with("authentication", "driver");
    fixture.publish(&named).await;
    fixture.embedded().reset_requests();
    let beyond = fixture.pod("other").with_secrets(&[]);
    let status = fixture.refused(&beyond, Code::PermissionDenied).await;
    let line = format!(
        "policy.driverCredentials: - {{ endpoint: \"minio\", namespace: \"spark\", \
         serviceAccount: \"spark\", bucket: \"{}\", prefix: \"other/\" }}",
        fixture.bucket
    );
    assert!(status.message().contains(&line), "{status:?}");
    let sources = "[{prefix: certs}, {prefix: other, path: o}]";
    let some = Pod::new("p", &[("bucket", &fixture.bucket), ("sources", sources)]);
    fixture.refused(&some.with_secrets(&[]), Code::PermissionDenied).await;
    let stranger = Pod { namespace: "team".to_owned(), ..fixture.pod("certs").with_secrets(&[]) };
    fixture.refused(&stranger, Code::PermissionDenied).await;
    let authority = Authority::new("another");
    let bundle = fixture.pod("certs").with_secrets(&[("ca.crt", authority.pem())]);
    let status = fixture.refused(&bundle, Code::InvalidArgument).await;
    assert!(status.message().contains("driver"), "{status:?}");
    assert_eq!(fixture.embedded().requests().total(), 0, "S3 is asked nothing");
    assert!(!fixture.home.log().contains("MARKED"), "a secret is in the log");
}

pub(crate) async fn a_forged_namespace_grants_nothing(mut fixture: Fixture) {
    const GRANT: &str = "{ namespace: spark, bucket: BUCKET }";
    fixture.driver("", GRANT).await;
    fixture.put_certificates().await;
    // The namespace stands in the volume context, where anybody may have written it.
    let pod = fixture.pod("certs").with_secrets(&[]);
    let status = fixture.refused(&pod, Code::PermissionDenied).await;
    assert!(status.message().contains("trust.podInfo"), "{status:?}");
    // A token in the context proves as little, even one that may be used.
    fixture.driver("contextTokens: true", GRANT).await;
    let issuer = Issuer::start();
    let tokens = issuer.issue(&[Token::of("spark", "spark")]);
    let pod = pod.with("authentication", "driver");
    fixture.refused(&pod.clone().with(TOKENS, &tokens), Code::PermissionDenied).await;
    // Only the kubelet can put one among the secrets.
    let certain = pod.clone().with_secrets(&[(TOKENS, &tokens)]);
    fixture.publish(&certain).await;
    let stranger = issuer.issue(&[Token::of("team", "spark")]);
    let stranger = fixture.pod_with("certs", &stranger).with("authentication", "driver");
    fixture.refused(&stranger, Code::PermissionDenied).await;
    assert_eq!(fixture.embedded().requests().lists(), 1);
}

pub(crate) async fn a_withdrawn_grant_keeps_the_revision(mut fixture: Fixture) {
    fixture.driver("podInfo: true", "{ namespace: spark, bucket: BUCKET }").await;
    fixture.put("r/file", "one").await;
    let pod = fixture.following("r", "100ms").with_secrets(&[]);
    let target = fixture.publish(&pod).await;
    fixture.put("r/file", "two").await;
    shows(&target, &files(&[("file", "two")])).await;
    fixture.driver("podInfo: true", "").await;
    fixture.put("r/file", "three").await;
    fixture.embedded().reset_requests();
    fixture.publish(&pod).await;
    let message = fixture.says(&pod, "policy.driverCredentials").await;
    assert!(message.contains("cannot be used"), "{message}");
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(fixture.embedded().requests().total(), 0);
    assert_eq!(tree(&target), files(&[("file", "two")]));
    fixture.driver("podInfo: true", "{ namespace: spark, bucket: BUCKET }").await;
    fixture.publish(&pod).await;
    shows(&target, &files(&[("file", "three")])).await;
}

pub(crate) async fn a_driver_without_credentials_says_so(mut fixture: Fixture) {
    fixture.driver("podInfo: true", "{ namespace: spark, bucket: BUCKET }").await;
    fixture.home.set_env(&DRIVER[2..]);
    fixture.restart().await;
    fixture.put_certificates().await;
    let pod = fixture.pod("certs").with_secrets(&[]);
    let status = fixture.refused(&pod, Code::FailedPrecondition).await;
    assert!(status.message().contains("no credentials of its own"), "{status:?}");
    // Those that S3 does not know are told apart from a Secret's.
    fixture.home.set_env(&DRIVER);
    fixture.embedded().rights().remove_credential("driver");
    fixture.restart().await;
    let status = fixture.refused(&pod, Code::Unauthenticated).await;
    assert!(status.message().contains("are the driver's own, not from a Secret"), "{status:?}");
}

pub(crate) async fn the_drivers_credentials_are_found_and_renewed(mut fixture: Fixture) {
    fixture.put("r/file", "one").await;
    fixture.driver("podInfo: true", "{ namespace: spark, bucket: BUCKET }").await;
    let token_file = fixture.home.path().join("container-token");
    std::fs::write(&token_file, CONTAINER_TOKEN).unwrap();
    let token_file = token_file.to_str().unwrap();
    for in_container in [true, false] {
        let around = Surroundings::start(fixture.embedded().shared_rights(), 4 * SECOND);
        let container = format!("{}/container", around.url());
        let env: &[(&str, &str)] = if in_container {
            &[
                ("AWS_CONTAINER_CREDENTIALS_FULL_URI", &container),
                ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", token_file),
                ("AWS_EC2_METADATA_DISABLED", "true"),
            ]
        } else {
            &[("AWS_EC2_METADATA_SERVICE_ENDPOINT", around.url())]
        };
        fixture.home.set_env(&[env, &[("HOME", "/nonexistent")]].concat());
        fixture.restart().await;
        let pod = fixture.following("r", "100ms").with_secrets(&[]);
        let target = fixture.publish(&pod).await;
        eventually("renewed credentials", || (around.given() >= 2).then_some(())).await;
        fixture.put("r/file", "two").await;
        shows(&target, &files(&[("file", "two")])).await;
        fixture.unpublish(&pod).await;
        fixture.put("r/file", "one").await;
    }
    assert!(!fixture.home.log().contains("MARKED"), "a secret is in the log");
}

pub(crate) async fn the_drivers_web_identity_is_exchanged(mut fixture: Fixture) {
    fixture.put("r/file", "one").await;
    fixture.driver("podInfo: true", "{ namespace: spark, bucket: BUCKET }").await;
    let realm = Realm::of(&fixture.server);
    realm.sts().set_life(4 * SECOND);
    let token_file = fixture.home.path().join("web-identity");
    std::fs::write(&token_file, realm.issuer().sign(&Token::of("s3view", "node"))).unwrap();
    let env = [
        ("AWS_WEB_IDENTITY_TOKEN_FILE", token_file.to_str().unwrap()),
        ("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/s3view"),
        ("AWS_ENDPOINT_URL_STS", realm.sts().url()),
        ("AWS_EC2_METADATA_DISABLED", "true"),
        ("HOME", "/nonexistent"),
    ];
    fixture.home.set_env(&env);
    fixture.restart().await;
    let target = fixture.publish(&fixture.following("r", "100ms").with_secrets(&[])).await;
    eventually("renewed credentials", || (realm.sts().exchanges() >= 2).then_some(())).await;
    fixture.put("r/file", "two").await;
    shows(&target, &files(&[("file", "two")])).await;
}
