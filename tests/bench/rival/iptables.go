package main

import (
	"bytes"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"sync/atomic"
)

// launched counts the programs that were executed.
var launched atomic.Int64

type side struct{ hook, chain string }

var sides = []side{
	{"OUTPUT", "peerpod-OUTPUT"},
	{"PREROUTING", "peerpod-PREROUTING"},
}

func iptables(args ...string) (string, error) {
	launched.Add(1)
	out, err := exec.Command("iptables", args...).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("iptables %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return string(out), err
}

// absent tells a "no" of iptables from a failure.
func absent(err error) bool {
	var exit *exec.ExitError
	return errors.As(err, &exit) && exit.ExitCode() == 1
}

func raw(action, chain string, rule ...string) (string, error) {
	return iptables(append([]string{"--wait", "-t", "raw", action, chain}, rule...)...)
}

func (t *tunnel) rule(s side) []string {
	end := "-d"
	if s.hook == "PREROUTING" {
		end = "-s"
	}
	return []string{
		end, t.Remote + "/32", "-p", "udp", "-m", "udp", "--dport", strconv.Itoa(t.Port),
		"-m", "comment", "--comment", fmt.Sprintf("peerpod [vni:%d]", t.VNI), "-j", "CT", "--notrack",
	}
}

// addRules launches 7 programs, and 13 when the chains are not there yet.
func (t *tunnel) addRules() error {
	if _, err := iptables("--version"); err != nil {
		return err
	}
	for _, s := range sides {
		if err := s.make(); err != nil {
			return err
		}
		if err := appendOnce(s.chain, t.rule(s)...); err != nil {
			return err
		}
	}
	return nil
}

func (s side) make() error {
	_, err := raw("-S", s.chain)
	if err == nil {
		return nil
	}
	if !absent(err) {
		return err
	}
	if _, err := raw("-N", s.chain); err != nil {
		return err
	}
	return appendOnce(s.hook, "-j", s.chain)
}

func appendOnce(chain string, rule ...string) error {
	_, err := raw("-C", chain, rule...)
	if err == nil {
		return nil
	}
	if !absent(err) {
		return err
	}
	_, err = raw("-A", chain, rule...)
	return err
}

// deleteRules launches 5 programs, and 11 when it takes the last pod's rules away.
func (t *tunnel) deleteRules() error {
	if _, err := iptables("--version"); err != nil {
		return err
	}
	for _, s := range sides {
		if _, err := raw("-D", s.chain, t.rule(s)...); err != nil {
			return err
		}
		left, err := raw("-S", s.chain)
		if err != nil {
			return err
		}
		if strings.Contains(left, "\n-A ") {
			continue
		}
		if err := s.unmake(); err != nil {
			return err
		}
	}
	return nil
}

func (s side) unmake() error {
	for _, step := range [][]string{{"-D", s.hook, "-j", s.chain}, {"-F", s.chain}, {"-X", s.chain}} {
		if _, err := raw(step[0], step[1], step[2:]...); err != nil {
			return err
		}
	}
	return nil
}

// filled are the pods that fill has put there; iptables-restore replaces the whole table.
var filled []tunnel

// restoreRules puts the rules of many more pods there at once.
func restoreRules(more []tunnel) error {
	filled = append(filled, more...)
	var text strings.Builder
	text.WriteString("*raw\n")
	for _, s := range sides {
		fmt.Fprintf(&text, ":%s - [0:0]\n-A %s -j %s\n", s.chain, s.hook, s.chain)
	}
	for _, t := range filled {
		for _, s := range sides {
			rule := t.rule(s)
			for i, word := range rule {
				if strings.Contains(word, " ") {
					rule[i] = strconv.Quote(word)
				}
			}
			fmt.Fprintf(&text, "-A %s %s\n", s.chain, strings.Join(rule, " "))
		}
	}
	text.WriteString("COMMIT\n")
	return restore(text.String())
}

func restore(text string) error {
	command := exec.Command("iptables-restore")
	command.Stdin = strings.NewReader(text)
	if out, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("iptables-restore: %w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}
