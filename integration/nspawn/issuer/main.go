//go:build real

// Issuer is the fake issuer as a program, for a machine that has no other
// network. It is down until the file that its second argument names is there.
package main

import (
	"crypto/tls"
	"log"
	"net/http"
	"os"
	"time"

	"credentialbroker/internal/fake"
)

func main() {
	if len(os.Args) != 3 {
		log.Fatal("usage: issuer CA-FILE READY-FILE")
	}
	cert, ca, err := fake.TLS()
	if err != nil {
		log.Fatal(err)
	}
	if err := os.WriteFile(os.Args[1], ca, 0o644); err != nil {
		log.Fatal(err)
	}
	issuer := fake.NewIssuer(fake.Client{ID: "nspawn-client", Secret: "nspawn-secret-3f9d2e7b", APIKey: "nspawn-key-71b2d9e0"})
	issuer.Set(fake.Fault{Kind: fake.Unavailable, RetryAfter: time.Second})
	go func() {
		for ; ; time.Sleep(100 * time.Millisecond) {
			if _, err := os.Stat(os.Args[2]); err == nil {
				issuer.Set(fake.Fault{})
				return
			}
		}
	}()
	srv := &http.Server{Addr: "127.0.0.1:8443", Handler: issuer, ReadHeaderTimeout: 10 * time.Second,
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}}
	log.Fatal(srv.ListenAndServeTLS("", ""))
}
