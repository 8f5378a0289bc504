package main

import (
	"context"
	"net"
	"time"
)

const (
	dialBudget   = 5 * time.Minute
	firstBackoff = 100 * time.Millisecond
	lastBackoff  = 5 * time.Second
)

// dialPatiently connects as the upstream shape does: each attempt may last for all that is left of
// the budget, so while the VM drops SYNs the kernel's back-off decides; after a refusal it waits,
// twice as long each time.
func dialPatiently(target string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), dialBudget)
	defer cancel()
	wait := firstBackoff
	for {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", target)
		if err == nil {
			return conn, nil
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(wait):
			wait = min(2*wait, lastBackoff)
		}
	}
}
