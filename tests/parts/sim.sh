# part: sim           the daemon in a simulated world: 1,000 seeds, its crash points, and planted faults that must be found
# 1,000 seeds find nothing in the tree as it is; in a copy of it each patch under tests/sim/faults is found.
# tests/sim/README.md says how. PEERPODD_SIM_SEEDS is how many.
sim_seeds=${PEERPODD_SIM_SEEDS:-1000}

# Runs the simulation: a label for the results, then its arguments. With $sim_features of its own.
sim_run() {
    local label=$1; shift
    if cargo run --quiet -p peerpod-sim ${sim_features:+--features $sim_features} -- "$@" >"$out/sim-$label.log" 2>&1; then
        count ok "sim $label"; echo "ok      sim $label: $(tail -n 1 "$out/sim-$label.log")"
        printf 'sim\t%s\tok\n' "$label" >>"$results"
    else
        tail -n 40 "$out/sim-$label.log"; count fail "sim $label"
        printf 'sim\t%s\tFAILED\n' "$label" >>"$results"
    fi
}

# A copy of the tree at one place; only what differs is written, so that only that is built anew. It has
# a target folder of its own: cargo would take what it built of the copy for what the tree needs.
sim_copy() {
    local file copy=$target/sim-faults
    while IFS= read -r file; do
        cmp --silent "$file" "$copy/$file" && continue
        mkdir -p "$copy/$(dirname "$file")" && cp "$file" "$copy/$file"
    done < <(git ls-files --cached --others --exclude-standard)
}

# The copy lies in no repository: else git would take the paths for the repository's own.
sim_patch() { (cd "$target/sim-faults" && GIT_CEILING_DIRECTORIES=$target git apply "$@"); }

sim_build() { (cd "$target/sim-faults" && CARGO_TARGET_DIR=$target/sim-target cargo build --quiet -p peerpod-sim); }

# Each patch must apply, build, and be found within the seeds.
sim_faults() {
    local patch name log
    sim_copy
    for patch in "$root"/tests/sim/faults/*.patch; do
        name=$(basename "$patch" .patch) log=$out/sim-fault-$(basename "$patch" .patch).log
        if ! sim_patch "$patch" 2>"$log"; then
            cat "$log"; count fail "sim fault $name: the patch does not apply"; continue
        fi
        if sim_build >"$log" 2>&1; then
            if "$target/sim-target/debug/peerpod-sim" --seeds "$sim_seeds" --first >>"$log" 2>&1; then
                count fail "sim fault $name: not found in $sim_seeds seeds"
            elif grep -q '^seed .* breaks ' "$log"; then
                count ok "sim fault $name"; echo "ok      found $name: $(grep -m 1 '^seed .* breaks ' "$log" | cut -c1-140)"
            else
                tail -n 20 "$log"; count fail "sim fault $name: the simulation itself failed"
            fi
        else
            tail -n 20 "$log"; count fail "sim fault $name: the patched tree does not build"
        fi
        sim_patch --reverse "$patch"
    done
}

part_sim() {
    cargo_test sim -p peerpod-sim
    sim_run seeds --seeds "$sim_seeds"
    # A death at each point of the daemon's world, and 200 pairs of them.
    sim_features=crash-points sim_run points --points 200
    sim_faults
}

# 10,000 seeds, every pair of the daemon's own crash points, and of the points of the simulation's parts.
deep_sim() {
    sim_run deep-seeds --seeds 10000
    sim_features=crash-points sim_run deep-points --points 0 --pairs
    sim_run deep-pairs --pairs
}
