use std::path::{Path, PathBuf};

const FILES: [&str; 3] = ["hypervisor.proto", "podvminfo.proto", "relay.proto"];
const GENERATED: [&str; 3] = ["hypervisor.rs", "podvminfo.rs", "peerpodd.relay.v1.rs"];

fn here() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/proto")
}

fn generate(into: &Path) {
    let compile =
        |files: &[&str]| protox::compile(files, [here()]).expect("the .proto files parse");
    let config = || {
        let mut prost = prost_build::Config::new();
        // Order must not depend on a hash, and bytes must not be copied.
        prost.btree_map(["."]).bytes(["."]).out_dir(into);
        // They carry private keys, initdata and requests with a container's environment: mod.rs prints
        // them without.
        prost.skip_debug([
            ".hypervisor.CreateVMRequest",
            ".peerpodd.relay.v1.Edit",
            ".peerpodd.relay.v1.EditReply",
            ".peerpodd.relay.v1.Tls",
        ]);
        prost
    };
    // The two ttrpc services need messages only; src/hypervisor speaks their frames.
    config().compile_fds(compile(&FILES[..2])).expect("generate");
    // `connect` would be there twice: the call of ours, and the generated constructor.
    tonic_prost_build::configure()
        .build_transport(false)
        .out_dir(into)
        .compile_fds_with_config(compile(&FILES[2..]), config())
        .expect("generate");
}

#[test]
#[allow(clippy::disallowed_methods, reason = "how a person says: write them")]
fn committed_code_is_what_the_proto_files_give() {
    let dir = tempfile::tempdir().expect("tempdir");
    generate(dir.path());
    for name in GENERATED {
        let fresh = std::fs::read_to_string(dir.path().join(name)).expect("generated");
        let committed = here().join("generated").join(name);
        if std::env::var("PEERPODD_WRITE_PROTO").is_ok() {
            std::fs::write(&committed, &fresh).expect("write");
        }
        let have = std::fs::read_to_string(&committed).unwrap_or_default();
        assert!(have == fresh, "{name} is not what its .proto file gives; see src/proto/mod.rs");
    }
}
