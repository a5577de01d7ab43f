//! What only a server that checks it can prove, against Ceph's object gateway: its token service,
//! whose roles must be named, and SSE-C.

use std::sync::Arc;

use aws_sdk_s3::primitives::ByteStream;
use base64::{Engine, engine::general_purpose::STANDARD};
use md5::{Digest, Md5};
use serde_json::{Value, json};
use tonic::Code;

use crate::{
    fixture::{Fixture, tree},
    support::{
        issuer::{Issuer, TOKENS, Token},
        kubelet::Pod,
        radosgw::Radosgw,
        server::{CREDENTIALS, Server},
    },
};

impl Fixture {
    fn radosgw(&self) -> Arc<Radosgw> {
        match &self.server {
            Server::Radosgw(server) => Arc::clone(server),
            Server::Embedded(_) | Server::Minio(_) => panic!("this case is for Ceph"),
        }
    }

    /// Lets read the case's bucket below a prefix.
    fn reading(&self, prefix: &str) -> Value {
        let bucket = &self.bucket;
        json!({ "Version": "2012-10-17", "Statement": [
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
        ] })
    }
}

pub(crate) async fn an_inline_volume_shows_the_prefix(fixture: Fixture) {
    crate::views::an_inline_volume_shows_the_prefix(fixture).await;
}

pub(crate) async fn a_token_is_exchanged_for_a_role(fixture: Fixture) {
    let server = fixture.radosgw();
    fixture.put_certificates().await;
    fixture.put("other/file", "hidden").await;
    let role = server.add_role("reader", &fixture.reading("certs/")).await;
    let token = Token::of("spark", "driver");
    let pod = |prefix: &str, token: &Token, role: &str| -> Pod {
        let tokens = server.issuer().issue(std::slice::from_ref(token));
        fixture.pod(prefix).with_secrets(&[(TOKENS, &tokens)]).with("roleArn", role)
    };
    let target = fixture.publish(&pod("certs", &token, &role)).await;
    assert_eq!(tree(&target)["keystore.jks"], "keystore");
    // The role has no other rights, and other roles have none here.
    fixture.refused(&pod("other", &token, &role), Code::PermissionDenied).await;
    let other = server.add_role("other", &fixture.reading("other/")).await;
    fixture.refused(&pod("certs", &token, &other), Code::PermissionDenied).await;
    assert_eq!(tree(&fixture.publish(&pod("other", &token, &other)).await)["file"], "hidden");
    // Ceph says of all that it does not like that it denies access.
    let unknown = pod("certs", &token, "arn:aws:iam:::role/unknown");
    fixture.refused(&unknown, Code::PermissionDenied).await;
    let audience = pod("certs", &token.clone().for_audience("vault"), &role);
    let status = fixture.refused(&audience, Code::PermissionDenied).await;
    assert!(status.message().contains("audience \"vault\""), "{status:?}");
    let forged = Issuer::start().issue(&[Token::of("spark", "forger")]);
    let forged = fixture.pod("certs").with_secrets(&[(TOKENS, &forged)]).with("roleArn", &role);
    fixture.refused(&forged, Code::PermissionDenied).await;
    let mut nameless = pod("certs", &token, &role);
    nameless.attributes.remove("roleArn");
    fixture.refused(&nameless, Code::PermissionDenied).await;
}

pub(crate) async fn a_customer_key_is_checked(fixture: Fixture) {
    let (right, wrong) = ([7_u8; 32], [8_u8; 32]);
    let put = fixture.server.client().put_object().bucket(&fixture.bucket).key("sse/file");
    let put = put
        .sse_customer_algorithm("AES256")
        .sse_customer_key(STANDARD.encode(right))
        .sse_customer_key_md5(STANDARD.encode(Md5::digest(right)))
        .body(ByteStream::from_static(b"sealed"));
    put.send().await.expect("Ceph takes a customer key");
    let (id, secret) = CREDENTIALS;
    let with_key = |key: &[u8]| {
        let key = STANDARD.encode(key);
        let secrets = [("accesskey", id), ("secretkey", secret), ("sseCustomerKey", &key)];
        fixture.pod("sse").with_secrets(&secrets)
    };
    let target = fixture.publish(&with_key(&right)).await;
    assert_eq!(tree(&target)["file"], "sealed");
    // Ceph really decrypts: it refuses another key and none, cached or not.
    for pod in [with_key(&wrong), fixture.pod("sse")] {
        let status = fixture.kubelet.publish(&pod).await.expect_err("it cannot be read");
        assert!(
            matches!(status.code(), Code::InvalidArgument | Code::PermissionDenied),
            "{status:?}"
        );
    }
}

pub(crate) async fn nobody_reads_without_a_policy(mut fixture: Fixture) {
    fixture.put_certificates().await;
    fixture.reconfigure("policy: { authentication: [secret, anonymous] }\n").await;
    let pod = fixture.pod("certs").with_secrets(&[]).with("authentication", "anonymous");
    fixture.refused(&pod, Code::PermissionDenied).await;
    let policy = json!({ "Version": "2012-10-17", "Statement": [{
        "Effect": "Allow",
        "Principal": "*",
        "Action": ["s3:ListBucket", "s3:GetObject"],
        "Resource": [
            format!("arn:aws:s3:::{}", fixture.bucket),
            format!("arn:aws:s3:::{}/*", fixture.bucket),
        ],
    }] });
    let put = fixture.server.client().put_bucket_policy().bucket(&fixture.bucket);
    put.policy(policy.to_string()).send().await.expect("Ceph takes a bucket policy");
    let target = fixture.publish(&pod).await;
    assert_eq!(tree(&target)["keystore.jks"], "keystore");
}
