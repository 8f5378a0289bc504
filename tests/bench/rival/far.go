package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"flag"
	"net"
	"os"

	"github.com/containerd/ttrpc"
)

// farMain is the program in the VM: it terminates TLS and ttrpc, and calls the agent anew.
func farMain(args []string) error {
	flags := flag.NewFlagSet("far", flag.ExitOnError)
	listen := flags.String("listen", "", "address to serve")
	socket := flags.String("agent", "", "the agent's unix socket")
	material := flags.String("tls", "", "file with the answer to create: certificate, key, anchor")
	if err := flags.Parse(args); err != nil {
		return err
	}
	config, err := serverConfig(*material)
	if err != nil {
		return err
	}
	plain, err := net.Listen("tcp", *listen)
	if err != nil {
		return err
	}
	conn, err := net.Dial("unix", *socket)
	if err != nil {
		return err
	}
	server, err := ttrpc.NewServer()
	if err != nil {
		return err
	}
	serve(server, remote{ttrpc.NewClient(conn)})
	go endWithStdin()
	return server.Serve(context.Background(), tls.NewListener(plain, config))
}

func serverConfig(path string) (*tls.Config, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var m issued
	if err := json.Unmarshal(text, &m); err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair([]byte(m.Cert), []byte(m.Key))
	if err != nil {
		return nil, err
	}
	clients := x509.NewCertPool()
	if !clients.AppendCertsFromPEM([]byte(m.ClientCA)) {
		return nil, errors.New("no anchor for the client")
	}
	return &tls.Config{
		Certificates: []tls.Certificate{pair},
		ClientAuth:   tls.RequireAndVerifyClientCert,
		ClientCAs:    clients,
	}, nil
}
