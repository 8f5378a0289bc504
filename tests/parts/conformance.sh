# part: conformance  every cloud's provider over its double: the promises, bad input, bursts
# Packages of the doubles, as pinned; one folder for all clouds.
cloud_packages() {
    local clouds=(aws azure gcp) arguments=() cloud
    for cloud in "${clouds[@]}"; do arguments+=(-r "tests/clouds/requirements/$cloud.txt"); done
    python3 -m pip install --quiet --require-hashes --upgrade --target tests/.tools/python \
        "${arguments[@]}" >"$out/conformance-packages.log" 2>&1
}

# libvirt's double is libvirt: these of Debian's, which are many and start services where there is an init.
libvirt_packages=(libvirt-dev pkg-config libvirt-daemon-system libvirt-clients qemu-system-x86 qemu-utils
    dnsmasq-base ovmf binutils)
libvirt_there() {
    local program
    for program in libvirtd virtlogd virsh qemu-system-x86_64 qemu-img dnsmasq objcopy; do
        PATH=$PATH:/usr/sbin type -P "$program" >/dev/null || return 1
    done
    [ -e /usr/share/OVMF/OVMF_CODE_4M.fd ] && pkg-config --exists libvirt 2>/dev/null
}
# A machine of CI's has nobody who could be asked, and is nobody's.
libvirt_install() {
    [ "$(id -u)" = 0 ] && [ -n "${CI:-}" ] && command -v apt-get >/dev/null || return 1
    echo "installing for libvirt: ${libvirt_packages[*]}"
    { apt-get -qq update && DEBIAN_FRONTEND=noninteractive \
        apt-get -qq install --yes --no-install-recommends "${libvirt_packages[@]}"; } \
        >"$out/conformance-libvirt-packages.log" 2>&1 && libvirt_there
}
conformance_libvirt() {
    if ! libvirt_there && ! libvirt_install; then
        echo "SKIP conformance-libvirt: apt-get install --no-install-recommends ${libvirt_packages[*]}"
        skipped=$((skipped + 1))
        return
    fi
    cargo_test conformance-libvirt-unit -p peerpod-providers --features libvirt --lib libvirt::
    cargo build --quiet -p podvm
    # Each has a libvirtd and QEMUs of its own.
    RUST_TEST_THREADS=1 cargo_test conformance-libvirt -p peerpod-clouds --features libvirt \
        --test libvirt --test libvirt_boot
}

# The demo with VMs that boot, emulated. Builds a daemon of its own. Only `tests/run deep`.
deep_libvirt() {
    if [ "$(id -u)" != 0 ] || { ! libvirt_there && ! libvirt_install; }; then
        echo "SKIP deep-libvirt: root and apt-get install --no-install-recommends ${libvirt_packages[*]}"
        skipped=$((skipped + 1))
        return
    fi
    demo_run libvirt cargo demo --provider libvirt
}

part_conformance() {
    cloud_packages || { cat "$out/conformance-packages.log"; count fail "conformance: packages"; return; }
    PYTHONPATH=tests/.tools/python:tests/clouds/double python3 tests/clouds/double/arm_test.py ||
        count fail "conformance: Microsoft's client and the fake ARM disagree"
    PYTHONPATH=tests/.tools/python:tests/clouds/double python3 tests/clouds/double/gcp_test.py ||
        count fail "conformance: Google's client and the fake Compute API disagree"
    PYTHONPATH=tests/.tools/python:tests/clouds/double python3 tests/clouds/double/aws_test.py ||
        count fail "conformance: Amazon's client and EC2's double disagree"
    # With the features of part clouds, so that the providers, and what they stand on, are built once.
    cargo_test conformance-http -p peerpod-providers -p peerpod-clouds --features crash-points,aws,azure,gcp \
        --lib --test conformance --test aws --test azure --test gcp
    conformance_libvirt
    grep -hE '^(aws: |azure: |gcp: |libvirt: )' "$out"/conformance-*.log
    conformance_table
}

# Behaviours by providers, and the reasons of those that are exempt: as it stands in the README.
conformance_table() {
    grep -h '^conformance	' "$out"/conformance-*.log | awk -F'\t' '
        !($3 in seen) { seen[$3]; rows[++n] = $3 }
        $4 == "kept" { cell[$2, $3] = "kept" }
        $4 ~ /^exempt: / { why[$2, $3] = substr($4, 9) }
        { there[$2] }
        END {
            count = split("local fake aws azure gcp libvirt", provider, " ")
            for (p = 1; p <= count; p++) for (r = 1; r <= n; r++) {
                text = why[provider[p], rows[r]]
                if (text == "") continue
                if (!(text in number)) { number[text] = ++m; reason[m] = text }
                cell[provider[p], rows[r]] = "(" number[text] ")"
            }
            line = "| behaviour |"; rule = "|---|"
            for (p = 1; p <= count; p++) { line = line " " provider[p] " |"; rule = rule "---|" }
            print line; print rule
            for (r = 1; r <= n; r++) {
                line = "| " rows[r] " |"
                for (p = 1; p <= count; p++) {
                    word = cell[provider[p], rows[r]]
                    line = line " " (word != "" ? word : provider[p] in there ? "BROKEN" : "not run") " |"
                }
                print line
            }
            for (r = 1; r <= m; r++) print "- (" r ") " reason[r]
        }' | tee "$out/conformance.md"
    if grep -q 'not run' "$out/conformance.md"; then return; fi
    if grep -vxFf README.md "$out/conformance.md"; then
        count fail "conformance: these lines of the table do not stand in the README"
    fi
}
