# The demo 20 times in a row as root through cargo and 20 times, built, as nobody; with 1 and with 20
# pods. Only `tests/run deep`.
deep_demos() {
    binaries
    local n bin
    bin=$(demo_for_nobody)
    for n in $(seq 20); do
        demo_run "root-1-pod-$n" cargo demo --pods 1
        demo_run "root-20-pods-$n" cargo demo --pods 20
        demo_run "nobody-1-pod-$n" "${nobody[@]}" "$bin/peerpodd-demo" --pods 1
        demo_run "nobody-20-pods-$n" "${nobody[@]}" "$bin/peerpodd-demo" --pods 20
    done
    rm -rf "$bin"
}
