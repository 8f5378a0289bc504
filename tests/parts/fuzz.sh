# part: fuzz          the fuzz targets' corpus on the stable compiler, a planted panic among it; what peers cost
#
# The campaign that made the corpus is `tests/run deep-fuzz`: a nightly compiler and cargo-fuzz,
# PEERPODD_FUZZ_MINUTES of processor time for each target (15), one after the other; or only those
# named in PEERPODD_FUZZ_TARGETS. It adds what covers something new to tests/fuzz/corpus.
part_fuzz() {
    cargo_test fuzz -p peerpod-fuzz --all-features --test replay
    grep -hE '^fuzz: ' "$out/fuzz.log" | sort
    binaries && cargo_test bounds -p peerpod-it --test bounds
    grep -hE '^bounds: ' "$out/bounds.log"
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

# Into git's corpus: of all inputs of at most 2 KiB those few that reach the most, 40 KiB of a target.
fuzz_keep() { # target
    local name=$1 program work=$target/fuzz/work/$1 kept=tests/fuzz/corpus/$1 file
    program=$(fuzz_program "$name")
    rm -rf "$work/short" "$work/all" "$work/covers"
    mkdir "$work/short" "$work/all"
    find "$work/corpus" -type f -size -2049c -exec cp -t "$work/short" {} +
    "$program" -merge=1 "$work/all" "$kept" "$work/short" >"$work/merge.log" 2>&1 || return
    # Once more, for what each of them reaches.
    "$program" -set_cover_merge=1 -merge_control_file="$work/covers" "$(mktemp -d -p "$work/short")" "$work/all" \
        >>"$work/merge.log" 2>&1 || return
    # Seeds and regressions stay whatever they reach.
    find "$kept" -type f ! -name 'seed-*' ! -name 'found-*' -delete
    fuzz_best "$work/covers" 90 40960 | while read -r file; do
        cp "$file" "$kept/$(basename "$file" | cut -c 1-12)"
    done
}

# Of the files in libFuzzer's control file the best: in turn the one that adds most, by its length. A
# feature is an edge and how often it was gone; the edge counts for eight.
fuzz_best() { # control file, files, bytes
    awk -v files="$2" -v bytes="$3" '
        FNR == 1 { total = $1; next }
        FNR == 2 { next }
        FNR <= total + 2 { name[FNR - 3] = $0; next }
        $1 == "STARTED" { size[$2] = $3 }
        $1 == "FT" { reach[$2] = $0; hope[$2] = (NF - 2) * 9 / (size[$2] + 256) }
        function gain(i,    n, f, a, k, edge, new) {
            n = split(reach[i], a, " "); new = 0; split("", edge)
            for (k = 3; k <= n; k++) if (!(a[k] in seen)) {
                new++; f = int(a[k] / 8)
                if (!(f in edges) && !(f in edge)) { edge[f] = 1; new += 8 }
            }
            return new / (size[i] + 256)
        }
        function take(i,    n, a, k) {
            n = split(reach[i], a, " ")
            for (k = 3; k <= n; k++) { seen[a[k]] = 1; edges[int(a[k] / 8)] = 1 }
            print name[i]; bytes -= size[i]; delete hope[i]
        }
        END {
            # What a file adds only shrinks, so its last known gain is the most to hope for.
            while (files > 0) {
                best = -1
                for (i in hope) if (best < 0 || hope[i] > hope[best]) best = i
                if (best < 0 || hope[best] == 0) break
                if (size[best] > bytes) { delete hope[best]; continue }
                now = gain(best)
                if (now == hope[best]) { take(best); files-- } else hope[best] = now
            }
        }
    ' "$1"
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
