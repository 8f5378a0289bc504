// Command rival is what the bench compares peerpodd with: a program of the shape of a cloud API
// adaptor in Go, with the same libraries, hops and kernel calls in the same order, but none of
// anybody's code. It also holds the client and the agent of the bench, so that all sides of a
// comparison have the same ones.
//
//	client ─unix─▶ [daemon: ttrpc server → typed message → ttrpc client] ═TLS═▶ [far: the same again] ─unix─▶ agent
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"sync"
)

func main() {
	commands := map[string]func([]string) error{
		"agent": agentMain, "client": clientMain, "far": farMain, "daemon": daemonMain,
	}
	if len(os.Args) < 2 || commands[os.Args[1]] == nil {
		fmt.Fprintln(os.Stderr, "usage: rival agent|client|far|daemon [flags]; the bench starts it")
		os.Exit(2)
	}
	if err := commands[os.Args[1]](os.Args[2:]); err != nil {
		fmt.Fprintf(os.Stderr, "rival %s: %v\n", os.Args[1], err)
		os.Exit(1)
	}
}

// replies writes one JSON object a line; several goroutines may answer.
type replies struct {
	mu  sync.Mutex
	out *json.Encoder
}

func (r *replies) send(v any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	// The reader is our parent; when it has gone, stdin says so and the program ends.
	_ = r.out.Encode(v)
}

// serveStdin calls handle for each line of standard input until that ends.
func serveStdin(handle func(line []byte, to *replies)) error {
	to := &replies{out: json.NewEncoder(os.Stdout)}
	to.send(map[string]bool{"ready": true})
	in := bufio.NewReaderSize(os.Stdin, 1<<20)
	for {
		line, err := in.ReadBytes('\n')
		if len(line) > 0 {
			handle(line, to)
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
