package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/containerd/ttrpc"

	"peerpod.test/rival/agentpb"
)

// load is one measurement: count calls of size bytes, inFlight of them at a time.
type load struct {
	Kind     string `json:"kind"` // write, read, check
	Size     int    `json:"size"`
	Count    int    `json:"count"`
	InFlight int    `json:"in_flight"`
}

// timing is its result; times in nanoseconds.
type timing struct {
	P50   int64  `json:"p50"`
	P99   int64  `json:"p99"`
	Wall  int64  `json:"wall"`
	Bytes int64  `json:"bytes"`
	Error string `json:"error,omitempty"`
}

// clientMain holds one connection, as a shim does, and runs loads over it.
func clientMain(args []string) error {
	flags := flag.NewFlagSet("client", flag.ExitOnError)
	socket := flags.String("socket", "", "the agent's unix socket")
	if err := flags.Parse(args); err != nil {
		return err
	}
	conn, err := net.Dial("unix", *socket)
	if err != nil {
		return err
	}
	to := remote{ttrpc.NewClient(conn)}
	e := echo{newPattern()}
	return serveStdin(func(line []byte, answer *replies) {
		var l load
		if err := json.Unmarshal(line, &l); err != nil {
			answer.send(timing{Error: err.Error()})
			return
		}
		answer.send(l.run(to, e))
	})
}

func (l load) run(to agent, e echo) timing {
	inFlight := max(l.InFlight, 1)
	each := l.Count / inFlight
	took := make([][]int64, inFlight)
	errs := make([]error, inFlight)
	begin := time.Now()
	var all sync.WaitGroup
	for n := range inFlight {
		took[n] = make([]int64, 0, each)
		all.Go(func() {
			for i := range each {
				t := time.Now()
				if errs[n] = l.once(to, e, n*each+i); errs[n] != nil {
					return
				}
				took[n] = append(took[n], int64(time.Since(t)))
			}
		})
	}
	all.Wait()
	wall := int64(time.Since(begin))
	if err := errors.Join(errs...); err != nil {
		return timing{Error: err.Error()}
	}
	times := slices.Concat(took...)
	slices.Sort(times)
	if len(times) == 0 {
		return timing{Error: "no calls"}
	}
	at := func(q float64) int64 { return times[min(int(q*float64(len(times))), len(times)-1)] }
	return timing{P50: at(0.5), P99: at(0.99), Wall: wall, Bytes: int64(len(times) * l.Size)}
}

func (l load) once(to agent, e echo, number int) error {
	ctx := context.Background()
	offset := number * 4099 % (patternSize - l.Size)
	data := e.pattern[offset : offset+l.Size]
	id := strconv.Itoa(offset)
	switch l.Kind {
	case "check":
		a, err := to.check(ctx, &agentpb.CheckRequest{})
		if err == nil && a.Status != agentpb.HealthCheckResponse_SERVING {
			err = errors.New("agent does not serve")
		}
		return err
	case "write":
		a, err := to.writeStdin(ctx, &agentpb.WriteStreamRequest{ContainerId: "bench", ExecId: id, Data: data})
		if err == nil && int(a.Len) != l.Size {
			err = fmt.Errorf("%d of %d bytes written", a.Len, l.Size)
		}
		return err
	case "read":
		a, err := to.readStdout(ctx, &agentpb.ReadStreamRequest{ContainerId: "bench", ExecId: id, Len: uint32(l.Size)})
		if err == nil && !bytes.Equal(a.Data, data) {
			err = errors.New("payload is not what was asked for")
		}
		return err
	}
	return fmt.Errorf("no load of kind %q", l.Kind)
}
