# part: secrets  what each process may still do; planted secrets searched for everywhere; the CA's rotation
part_secrets() {
    binaries && cargo_test secrets -p peerpod-it --test privilege --test secrets --test secrets_panic --test rotation
    grep -hE '^(privileges|secrets|rotation): ' "$out/secrets.log"
}
