package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"strconv"

	"github.com/containerd/ttrpc"

	"peerpod.test/rival/agentpb"
)

const (
	agentService  = "grpc.AgentService"
	healthService = "grpc.Health"
	// patternSize is the length of the bytes that every payload is a cut of.
	patternSize = 4 << 20
)

// agent is the typed service: served by the agent itself, and by each termination on the way to it.
type agent interface {
	check(context.Context, *agentpb.CheckRequest) (*agentpb.HealthCheckResponse, error)
	writeStdin(context.Context, *agentpb.WriteStreamRequest) (*agentpb.WriteStreamResponse, error)
	readStdout(context.Context, *agentpb.ReadStreamRequest) (*agentpb.ReadStreamResponse, error)
}

// serve registers a typed service with a server, as generated ttrpc code does.
func serve(server *ttrpc.Server, to agent) {
	server.RegisterService(healthService, &ttrpc.ServiceDesc{Methods: map[string]ttrpc.Method{
		"Check": method(to.check),
	}})
	server.RegisterService(agentService, &ttrpc.ServiceDesc{Methods: map[string]ttrpc.Method{
		"WriteStdin": method(to.writeStdin),
		"ReadStdout": method(to.readStdout),
	}})
}

func method[Q, A any](call func(context.Context, *Q) (*A, error)) ttrpc.Method {
	return func(ctx context.Context, unmarshal func(any) error) (any, error) {
		request := new(Q)
		if err := unmarshal(request); err != nil {
			return nil, err
		}
		return call(ctx, request)
	}
}

// remote is the agent at the other end of a ttrpc connection.
type remote struct{ client *ttrpc.Client }

func (r remote) check(ctx context.Context, q *agentpb.CheckRequest) (*agentpb.HealthCheckResponse, error) {
	a := new(agentpb.HealthCheckResponse)
	return a, r.client.Call(ctx, healthService, "Check", q, a)
}

func (r remote) writeStdin(ctx context.Context, q *agentpb.WriteStreamRequest) (*agentpb.WriteStreamResponse, error) {
	a := new(agentpb.WriteStreamResponse)
	return a, r.client.Call(ctx, agentService, "WriteStdin", q, a)
}

func (r remote) readStdout(ctx context.Context, q *agentpb.ReadStreamRequest) (*agentpb.ReadStreamResponse, error) {
	a := new(agentpb.ReadStreamResponse)
	return a, r.client.Call(ctx, agentService, "ReadStdout", q, a)
}

// echo is the agent of the bench. The exec id of a call says which cut of the pattern the payload
// is; what comes must be that cut, and what goes is.
type echo struct{ pattern []byte }

func newPattern() []byte {
	pattern := make([]byte, patternSize)
	state := uint64(0x9e3779b97f4a7c15)
	for i := range pattern {
		state ^= state << 13
		state ^= state >> 7
		state ^= state << 17
		pattern[i] = byte(state)
	}
	return pattern
}

func (e echo) cut(execID string, length int) ([]byte, error) {
	offset, err := strconv.Atoi(execID)
	if err != nil || offset < 0 || length < 0 || offset+length > len(e.pattern) {
		return nil, fmt.Errorf("no cut of %d bytes at %q", length, execID)
	}
	return e.pattern[offset : offset+length], nil
}

func (e echo) check(context.Context, *agentpb.CheckRequest) (*agentpb.HealthCheckResponse, error) {
	return &agentpb.HealthCheckResponse{Status: agentpb.HealthCheckResponse_SERVING}, nil
}

func (e echo) writeStdin(_ context.Context, q *agentpb.WriteStreamRequest) (*agentpb.WriteStreamResponse, error) {
	want, err := e.cut(q.ExecId, len(q.Data))
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(want, q.Data) {
		return nil, errors.New("payload is not what was sent")
	}
	return &agentpb.WriteStreamResponse{Len: uint32(len(q.Data))}, nil
}

func (e echo) readStdout(_ context.Context, q *agentpb.ReadStreamRequest) (*agentpb.ReadStreamResponse, error) {
	data, err := e.cut(q.ExecId, int(q.Len))
	return &agentpb.ReadStreamResponse{Data: data}, err
}

func agentMain(args []string) error {
	flags := flag.NewFlagSet("agent", flag.ExitOnError)
	socket := flags.String("socket", "", "unix socket to serve")
	if err := flags.Parse(args); err != nil {
		return err
	}
	listener, err := listenUnix(*socket)
	if err != nil {
		return err
	}
	server, err := ttrpc.NewServer()
	if err != nil {
		return err
	}
	serve(server, echo{newPattern()})
	go endWithStdin()
	return server.Serve(context.Background(), listener)
}

func listenUnix(path string) (net.Listener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	return net.Listen("unix", path)
}

// endWithStdin leaves when the bench has closed this program's standard input.
func endWithStdin() {
	buffer := make([]byte, 64)
	for {
		if _, err := os.Stdin.Read(buffer); err != nil {
			os.Exit(0)
		}
	}
}
