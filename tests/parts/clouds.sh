# part: clouds        whole pods over every cloud's double: lives, bad input, kill -9 at every crash point of a provider
# The daemon with all clouds and with crash points, in clouds/ beside the usual one.
clouds_binaries() {
    local clouds=$1
    cargo build --quiet -p peerpodd -p podvm -p peerpod-standin -p peerpodd-demo \
        --features "peerpodd/crash-points,${clouds//peerpod-clouds/peerpodd}" || return 1
    mkdir -p "$target/debug/clouds"
    cp "$target"/debug/{peerpodd,podvm,standin-agent} "$target/debug/clouds/" && binaries
}
part_clouds() {
    local clouds="peerpod-clouds/aws,peerpod-clouds/azure,peerpod-clouds/gcp"
    cloud_packages || { cat "$out/conformance-packages.log"; count fail "clouds: packages"; return; }
    clouds_binaries "$clouds" || { count fail "clouds: building the daemon with all clouds"; return; }
    cargo_test clouds -p peerpod-clouds --features "crash-points,$clouds" --lib --test pods --test crash
    grep -hE '^(pods|crash)	' "$out/clouds.log"
}
