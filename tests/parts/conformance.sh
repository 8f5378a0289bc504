# part: conformance  every cloud's provider over its double: the promises, bad input, bursts
# Packages of the doubles, as pinned; one folder for all clouds.
cloud_packages() {
    local clouds=(azure) arguments=() cloud
    for cloud in "${clouds[@]}"; do arguments+=(-r "tests/clouds/requirements/$cloud.txt"); done
    python3 -m pip install --quiet --require-hashes --upgrade --target tests/.tools/python \
        "${arguments[@]}" >"$out/conformance-packages.log" 2>&1
}

part_conformance() {
    cloud_packages || { cat "$out/conformance-packages.log"; count fail "conformance: packages"; return; }
    PYTHONPATH=tests/.tools/python:tests/clouds/double python3 tests/clouds/double/arm_test.py ||
        count fail "conformance: Microsoft's client and the fake ARM disagree"
    cargo_test conformance-azure -p peerpod-clouds --features azure --test azure
    grep -hE '^(conformance	|azure: )' "$out"/conformance-*.log
}
