# part: spoof  every row of the spoof matrix with real packets, and filters altered behind our back
part_spoof() {
    cargo_test spoof -p peerpod-tunnel --test spoof
    grep -hE '^spoof: ' "$out/spoof.log"
}
