package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"time"
)

const serverName = "podvm-server"

// pki is made at every start: a CA that issues each VM's certificate, and the daemon's own leaf.
type pki struct {
	ca     *x509.Certificate
	caKey  *ecdsa.PrivateKey
	client tls.Certificate
	// clientPEM is what a VM checks the daemon against.
	clientPEM string
}

// issued is what travels to a VM.
type issued struct {
	Cert     string `json:"cert"`
	Key      string `json:"key"`
	ClientCA string `json:"client_ca"`
}

func template(name string) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	return &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: name, Organization: []string{"rival"}},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().AddDate(1, 0, 0),
		KeyUsage:     x509.KeyUsageDigitalSignature,
	}, err
}

func newPKI() (*pki, error) {
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	t, err := template("rival CA")
	if err != nil {
		return nil, err
	}
	t.IsCA, t.BasicConstraintsValid, t.KeyUsage = true, true, x509.KeyUsageCertSign
	der, err := x509.CreateCertificate(rand.Reader, t, t, &caKey.PublicKey, caKey)
	if err != nil {
		return nil, err
	}
	ca, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	p := &pki{ca: ca, caKey: caKey}
	return p, p.makeClient()
}

func (p *pki) makeClient() error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	t, err := template("rival client")
	if err != nil {
		return err
	}
	t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	der, err := x509.CreateCertificate(rand.Reader, t, t, &key.PublicKey, key)
	if err != nil {
		return err
	}
	p.client = tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	p.clientPEM = block("CERTIFICATE", der)
	return nil
}

// issue makes a VM's key and certificate.
func (p *pki) issue() (issued, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return issued{}, err
	}
	t, err := template(serverName)
	if err != nil {
		return issued{}, err
	}
	t.DNSNames, t.ExtKeyUsage = []string{serverName}, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	der, err := x509.CreateCertificate(rand.Reader, t, p.ca, &key.PublicKey, p.caKey)
	if err != nil {
		return issued{}, err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	return issued{block("CERTIFICATE", der), block("PRIVATE KEY", keyDER), p.clientPEM}, err
}

// over puts TLS on a connection to a VM.
func (p *pki) over(conn net.Conn) (net.Conn, error) {
	roots := x509.NewCertPool()
	roots.AddCert(p.ca)
	secure := tls.Client(conn, &tls.Config{
		Certificates: []tls.Certificate{p.client},
		RootCAs:      roots,
		ServerName:   serverName,
	})
	return secure, secure.Handshake()
}

func block(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}
