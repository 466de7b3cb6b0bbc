package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// lifetime of all that is signed here; a cluster for tests lives for hours.
const lifetime = 10 * 365 * 24 * time.Hour

// An authority signs; its folder receives NAME.crt and NAME.key of each.
type authority struct {
	folder string
	cert   *x509.Certificate
	key    *ecdsa.PrivateKey
}

// list is a flag that may be given several times.
type list []string

func (l *list) String() string         { return strings.Join(*l, " ") }
func (l *list) Set(value string) error { *l = append(*l, value); return nil }

func write(path, kind string, der []byte) error {
	return os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
}

func (a authority) newKey(name string) (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, err
	}
	return key, write(filepath.Join(a.folder, name+".key"), "EC PRIVATE KEY", der)
}

// sign completes a template and writes NAME.crt and NAME.key. Without an authority's certificate the template signs itself.
func (a authority) sign(name string, template *x509.Certificate) (authority, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return a, err
	}
	template.SerialNumber = serial
	template.NotBefore = time.Now().Add(-time.Hour)
	template.NotAfter = time.Now().Add(lifetime)
	template.BasicConstraintsValid = true
	key, err := a.newKey(name)
	if err != nil {
		return a, err
	}
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		return a, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return a, err
	}
	return authority{a.folder, cert, key}, write(filepath.Join(a.folder, name+".crt"), "CERTIFICATE", der)
}

// server signs NAME=HOST,HOST.
func (a authority) server(text string) error {
	name, hosts, ok := strings.Cut(text, "=")
	if !ok {
		return fmt.Errorf("-server %q: want NAME=HOST,HOST", text)
	}
	template := &x509.Certificate{
		Subject:     pkix.Name{CommonName: name},
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for host := range strings.SplitSeq(hosts, ",") {
		if ip := net.ParseIP(host); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, host)
		}
	}
	_, err := a.sign(name, template)
	return err
}

// client signs NAME=USER or NAME=USER/GROUP, the user as common name and the group as organisation: how Kubernetes reads them.
func (a authority) client(text string) error {
	name, identity, ok := strings.Cut(text, "=")
	if !ok {
		return fmt.Errorf("-client %q: want NAME=USER or NAME=USER/GROUP", text)
	}
	user, group, grouped := strings.Cut(identity, "/")
	subject := pkix.Name{CommonName: user}
	if grouped {
		subject.Organization = []string{group}
	}
	_, err := a.sign(name, &x509.Certificate{
		Subject:     subject,
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	return err
}

// pki writes ca.crt, ca.key, a pair for each -server and -client, and a key without a certificate for each -key.
func pki(arguments []string) error {
	flags := flag.NewFlagSet("pki", flag.ContinueOnError)
	var servers, clients, keys list
	flags.Var(&servers, "server", "NAME=HOST,HOST")
	flags.Var(&clients, "client", "NAME=USER/GROUP")
	flags.Var(&keys, "key", "NAME")
	if len(arguments) == 0 {
		return errors.New("pki: want a folder")
	}
	if err := flags.Parse(arguments[1:]); err != nil {
		return err
	}
	ca, err := authority{folder: arguments[0]}.sign("ca", &x509.Certificate{
		Subject:  pkix.Name{CommonName: "test cluster"},
		IsCA:     true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	})
	if err != nil {
		return err
	}
	for _, each := range servers {
		if err := ca.server(each); err != nil {
			return err
		}
	}
	for _, each := range clients {
		if err := ca.client(each); err != nil {
			return err
		}
	}
	for _, each := range keys {
		if _, err := ca.newKey(each); err != nil {
			return err
		}
	}
	return nil
}
