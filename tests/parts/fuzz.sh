# part: fuzz          the fuzz targets' corpus on the stable compiler, a planted panic among it
#
# The campaign that made the corpus is `tests/run deep-fuzz`: a nightly compiler and cargo-fuzz,
# PEERPODD_FUZZ_MINUTES of processor time for each target (15), one after the other; or only those
# named in PEERPODD_FUZZ_TARGETS. It adds what covers something new to tests/fuzz/corpus.
part_fuzz() {
    cargo_test fuzz -p peerpod-fuzz --all-features --test replay
    grep -hE '^fuzz: ' "$out/fuzz.log" | sort
}

fuzz_tool() {
    if command -v cargo-fuzz >/dev/null; then return; fi
    local dir=$root/tests/.tools
    PATH=$PATH:$dir/bin
    [ -x "$dir/bin/cargo-fuzz" ] && return
    echo "installing cargo-fuzz 0.13.2 into tests/.tools (once)" >&2
    cargo install --locked --debug --version 0.13.2 --root "$dir" --target-dir "$target/tools" \
        cargo-fuzz >"$out/fuzz-install.log" 2>&1 && rm -rf "$target/tools"
}

fuzz_targets() { ls tests/fuzz/fuzz_targets | sed 's/\.rs$//'; }

# The built program of a target.
fuzz_program() { ls -t "$target"/fuzz/*/release/"$1" 2>/dev/null | head -n 1; }

fuzz_build() {
    # Without a sanitizer: there is no unsafe code of ours in what is run, and it is twice as fast.
    CARGO_TARGET_DIR=$target/fuzz CARGO_PROFILE_RELEASE_STRIP=none \
        cargo +nightly fuzz build --fuzz-dir tests/fuzz --sanitizer none "$@" >"$out/fuzz-build.log" 2>&1
}

# Runs a target until it has had its processor time; leaves what it found in $work.
fuzz_campaign() { # target, seconds of processor time
    local name=$1 goal=$2 program work=$target/fuzz/work/$1 spent=0 slice dict=()
    program=$(fuzz_program "$name")
    mkdir -p "$work/corpus" "$work/found"
    : >"$work/log"
    [ -f "tests/fuzz/dictionaries/$name" ] && dict=("-dict=tests/fuzz/dictionaries/$name")
    while [ "$spent" -lt "$goal" ]; do
        slice=$((goal - spent)); [ "$slice" -lt 120 ] || slice=120
        local TIMEFORMAT='%U %S'
        { time "$program" "$work/corpus" "tests/fuzz/corpus/$name" "${dict[@]}" \
            -max_total_time="$slice" -max_len=16384 -timeout=20 -rss_limit_mb=2048 -print_final_stats=1 \
            -artifact_prefix="$work/found/" >>"$work/log" 2>&1; } 2>"$work/time"
        local rc=$?
        spent=$((spent + $(awk '{printf "%d", $1 + $2 + 1}' "$work/time")))
        [ "$rc" = 0 ] || break
    done
    awk -v name="$name" -v spent="$spent" '
        /^#[0-9]+\t(DONE|INITED|NEW|REDUCE|pulse)/ { for (i = 1; i < NF; i++) { if ($i == "cov:") cov = $(i + 1); if ($i == "ft:") ft = $(i + 1) } }
        /^stat::number_of_executed_units/ { runs += $2 }
        END { printf "fuzz\t%s\t%d executions\t%d edges\t%d features\t%.1f CPU minutes\n", name, runs, cov, ft, spent / 60 }
    ' "$work/log"
    ls "$work/found" | sed "s|^|FOUND $name: $work/found/|"
    [ -z "$(ls "$work/found")" ]
}

# The smallest set of inputs with the coverage of all of them, of at most 4 KiB each, into git's corpus.
fuzz_keep() { # target
    local name=$1 program work=$target/fuzz/work/$1
    program=$(fuzz_program "$name")
    rm -rf "$work/kept"; mkdir "$work/kept"
    "$program" -merge=1 -max_len=2048 "$work/kept" "tests/fuzz/corpus/$name" "$work/corpus" >"$work/merge.log" 2>&1 || return
    # Seeds and regressions stay whatever they cover; of the others the smallest ones.
    find "tests/fuzz/corpus/$name" -type f ! -name 'seed-*' ! -name 'found-*' -delete
    ls -S -r "$work/kept" | head -n 90 | while read -r file; do
        cp "$work/kept/$file" "tests/fuzz/corpus/$name/$(printf '%.12s' "$file")"
    done
}

deep_fuzz() {
    local name
    fuzz_tool && fuzz_build || { tail -n 20 "$out/fuzz-build.log"; count fail "fuzz targets: not built"; return; }
    for name in ${PEERPODD_FUZZ_TARGETS:-$(fuzz_targets)}; do
        if fuzz_campaign "$name" $((${PEERPODD_FUZZ_MINUTES:-15} * 60)); then
            count ok "fuzz $name"; fuzz_keep "$name"
        else
            count fail "fuzz $name: see above"
        fi
    done
}
