//! Compiles the CSI contract to Rust, without protoc.
//!
//! A message that can carry a secret gets no derived `Debug`: one `{:?}` in a log line would print
//! it. Which messages those are is read from the contract, so none can be forgotten: a new one is
//! reported by `missing_debug_implementations` until `src/csi/proto/redacted.rs` prints it.

use protox::{
    Compiler,
    prost_reflect::{DescriptorPool, FieldDescriptor},
};

const CONTRACT: &str = "proto/csi.proto";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed={CONTRACT}");
    let mut compiler = Compiler::new(["proto"])?;
    compiler.include_imports(true).open_file("csi.proto")?;

    tonic_prost_build::configure()
        .skip_debug(secret_messages(&compiler.descriptor_pool()))
        // The notes in the contract are no rustdoc.
        .disable_comments(["."])
        .compile_fds(compiler.file_descriptor_set())?;
    Ok(())
}

/// The messages with at least one field that must not be printed as it is.
fn secret_messages(pool: &DescriptorPool) -> Vec<String> {
    let messages = pool.all_messages().filter(|m| m.package_name() == "csi.v1");
    let secret = messages.filter(|message| message.fields().any(|field| is_secret(&field)));
    secret.map(|message| format!(".{}", message.full_name())).collect()
}

/// Marked in the contract, or one of two that carry secrets unmarked: mount flags may name
/// credentials, and a kubelet may put service account tokens into the volume context.
fn is_secret(field: &FieldDescriptor) -> bool {
    let marks = field.options();
    let marked = marks.extensions().any(|(mark, _)| mark.name() == "csi_secret");
    marked || matches!(field.name(), "mount_flags" | "volume_context")
}
