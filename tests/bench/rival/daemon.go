package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"

	"peerpod.test/rival/agentpb"
)

// order is what the bench asks of the daemon, one a line.
type order struct {
	Op     string   `json:"op"`
	ID     string   `json:"id"`
	Socket string   `json:"socket"`
	Target string   `json:"target"`
	Tunnel *tunnel  `json:"tunnel"`
	Fill   []tunnel `json:"fill"`
	Park   string   `json:"park"`
}

// answer tells what it cost; times in nanoseconds.
type answer struct {
	Op       string  `json:"op"`
	ID       string  `json:"id,omitempty"`
	Wall     int64   `json:"wall"`
	CPU      int64   `json:"cpu"`
	Launches int64   `json:"launches"`
	At       int64   `json:"at"` // CLOCK_MONOTONIC when it was done
	Issued   *issued `json:"issued,omitempty"`
	Error    string  `json:"error,omitempty"`
}

// pod is one listener, one ttrpc server, one connection to the VM and one ttrpc client.
type pod struct {
	listener net.Listener
	server   *ttrpc.Server
	conn     net.Conn
}

type daemon struct {
	pki  *pki
	mu   sync.Mutex
	pods map[string]*pod
}

func daemonMain(args []string) error {
	flags := flag.NewFlagSet("daemon", flag.ExitOnError)
	socket := flags.String("hypervisor", "", "socket that the shims would call; none without it")
	if err := flags.Parse(args); err != nil {
		return err
	}
	p, err := newPKI()
	if err != nil {
		return err
	}
	d := &daemon{pki: p, pods: map[string]*pod{}}
	if *socket != "" {
		if err := serveHypervisor(*socket); err != nil {
			return err
		}
	}
	return serveStdin(d.handle)
}

// serveHypervisor is there for the time from exec to a serving socket; the bench gives its orders
// by standard input.
func serveHypervisor(socket string) error {
	listener, err := listenUnix(socket)
	if err != nil {
		return err
	}
	server, err := ttrpc.NewServer()
	if err != nil {
		return err
	}
	server.RegisterService("hypervisor.Hypervisor", &ttrpc.ServiceDesc{})
	go func() { _ = server.Serve(context.Background(), listener) }()
	return nil
}

func (d *daemon) handle(line []byte, to *replies) {
	var o order
	if err := json.Unmarshal(line, &o); err != nil {
		to.send(answer{Error: err.Error()})
		return
	}
	if o.Op == "dial" {
		go func() { to.send(measured(o, d.dial)) }()
		return
	}
	to.send(measured(o, d.act))
}

func measured(o order, act func(order, *answer) error) answer {
	a := answer{Op: o.Op, ID: o.ID}
	cpu, launches, begin := cpuTime(), launched.Load(), time.Now()
	if err := act(o, &a); err != nil {
		a.Error = err.Error()
	}
	a.Wall, a.At = int64(time.Since(begin)), monotonic()
	a.CPU, a.Launches = cpuTime()-cpu, launched.Load()-launches
	return a
}

func (d *daemon) act(o order, a *answer) error {
	switch o.Op {
	case "create":
		return d.create(o, a)
	case "start":
		return d.start(o)
	case "stop":
		return d.stop(o)
	case "attach":
		return o.Tunnel.attach()
	case "detach":
		return o.Tunnel.detach()
	case "fill":
		return fill(o.Fill, o.Park)
	case "issue":
		made, err := d.pki.issue()
		a.Issued = &made
		return err
	}
	return fmt.Errorf("no operation %q", o.Op)
}

// dial only waits until a VM's agent answers.
func (d *daemon) dial(o order, _ *answer) error {
	plain, err := dialPatiently(o.Target)
	if err != nil {
		return err
	}
	secure, err := d.pki.over(plain)
	if err != nil {
		return err
	}
	defer secure.Close()
	_, err = remote{ttrpc.NewClient(secure)}.check(context.Background(), &agentpb.CheckRequest{})
	return err
}

// create looks at the pod's namespace, issues the VM's certificate and listens for the shim.
func (d *daemon) create(o order, a *answer) error {
	if o.Tunnel != nil {
		if err := inspect(o.Tunnel.Netns); err != nil {
			return err
		}
	}
	made, err := d.pki.issue()
	if err != nil {
		return err
	}
	listener, err := listenUnix(o.Socket)
	if err != nil {
		return err
	}
	a.Issued = &made
	d.mu.Lock()
	defer d.mu.Unlock()
	d.pods[o.ID] = &pod{listener: listener}
	return nil
}

// start makes the tunnel, waits for the VM and serves the shim.
func (d *daemon) start(o order) error {
	d.mu.Lock()
	p := d.pods[o.ID]
	d.mu.Unlock()
	if p == nil {
		return fmt.Errorf("no pod %q", o.ID)
	}
	if o.Tunnel != nil {
		if err := o.Tunnel.attach(); err != nil {
			return err
		}
	}
	plain, err := dialPatiently(o.Target)
	if err != nil {
		return err
	}
	if p.conn, err = d.pki.over(plain); err != nil {
		return err
	}
	if p.server, err = ttrpc.NewServer(); err != nil {
		return err
	}
	serve(p.server, remote{ttrpc.NewClient(p.conn)})
	go func() { _ = p.server.Serve(context.Background(), p.listener) }()
	return nil
}

func (d *daemon) stop(o order) error {
	d.mu.Lock()
	p := d.pods[o.ID]
	delete(d.pods, o.ID)
	d.mu.Unlock()
	var errs []error
	if p != nil {
		if p.server != nil {
			errs = append(errs, p.server.Close())
		}
		if p.conn != nil {
			_ = p.conn.Close()
		}
	}
	if o.Tunnel != nil {
		errs = append(errs, o.Tunnel.detach())
	}
	return errors.Join(errs...)
}

// cpuTime is what this program and the programs it has launched have used.
func cpuTime() int64 {
	var self, children syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &self)
	_ = syscall.Getrusage(syscall.RUSAGE_CHILDREN, &children)
	var sum int64
	for _, t := range []syscall.Timeval{self.Utime, self.Stime, children.Utime, children.Stime} {
		sum += t.Nano()
	}
	return sum
}

func monotonic() int64 {
	var t unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &t)
	return t.Nano()
}
