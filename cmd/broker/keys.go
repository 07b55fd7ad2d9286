package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"credentialbroker/api/client"
)

func keysCommand(s *sockets) *cobra.Command {
	c := &cobra.Command{Use: "keys", Short: "Make and show the key that a client signs with", Args: unknown,
		Long: "A client that authenticates with private_key_jwt or a certificate signs with a key of its own. The private half\n" +
			"is made inside the daemon and goes straight into the secrets manager: no screen, no file. The public half is\n" +
			"for the issuer.",
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		Example: "  broker keys new acm\n  broker keys show acm\n  broker keys export acm --format jwk\n  broker keys rotate acm"}
	c.AddCommand(keysNew(s), keysShow(s), keysExport(s), keysRotate(s))
	return c
}

func keysNew(s *sockets) *cobra.Command {
	var k client.NewKey
	var asJSON bool
	kinds := []string{"rsa-2048", "rsa-3072", "rsa-4096", "p-256", "ed25519"}
	c := &cobra.Command{Use: "new CLIENT", Short: "Make a new key, straight into the secrets manager", Args: oneClient,
		Long: "Make a new key for the client. The private half goes into the client's secret, as a new version of it; a key\n" +
			"that is there already is left alone, but --certificate makes a certificate around it. The issuer has to know\n" +
			"the public half before it accepts the key.\n\n" +
			"--kind is one of " + strings.Join(kinds, ", ") + ".",
		Example: "  broker keys new acm\n  broker keys new geosecure --certificate --subject vacancies.example",
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case k.Kind != "" && !slices.Contains(kinds, k.Kind):
				return usageError{fmt.Errorf("--kind %s is unknown: one of %s", k.Kind, strings.Join(kinds, ", "))}
			case k.Subject != "" && !k.Certificate:
				return usageError{errors.New("--subject is the certificate's: add --certificate")}
			}
			key, err := s.administration().NewKey(cmd.Context(), args[0], k)
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			if asJSON {
				return printJSON(out, key)
			}
			fmt.Fprintf(out, "version %s of the secret of %s holds a new key: kid %s, %s\n", key.Version, key.Client, key.KeyID, key.Algorithm)
			format := "jwk"
			if key.Certificate != "" {
				format = "certificate   # or jwk, as the issuer wants it"
			}
			_, err = fmt.Fprintf(out, "Next:\n"+
				"  1. give the issuer the public half:    broker keys export %[1]s --format %[2]s\n"+
				"  2. when it knows it, have it tried:    broker retry %[1]s\n", key.Client, format)
			if err == nil && len(key.Missing) > 0 {
				_, err = fmt.Fprintf(out, "  3. add %s to the same secret, beside private_key: whoever replaces the secret as a whole loses the key\n", strings.Join(key.Missing, " and "))
			}
			return err
		}}
	c.Flags().StringVar(&k.Kind, "kind", "", "kind of key (default rsa-3072)")
	c.Flags().BoolVar(&k.Certificate, "certificate", false, "put a self-signed certificate beside it, for issuers that want the key in one")
	c.Flags().StringVar(&k.Subject, "subject", "", "common name of the certificate (default: the client's name)")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func keysShow(s *sockets) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{Use: "show CLIENT", Short: "Show the public half of the client's key", Args: oneClient,
		Example: "  broker keys show acm\n  broker keys show acm --json",
		RunE: func(cmd *cobra.Command, args []string) error {
			key, err := s.administration().Key(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			if asJSON {
				return printJSON(out, key)
			}
			certificate := "none"
			if key.Certificate != "" {
				certificate = "broker keys export " + key.Client + " --format certificate prints it"
			}
			fmt.Fprintf(out, "client       %s\nversion      %s\nkid          %s\nalg          %s\ncertificate  %s\n", key.Client, key.Version, key.KeyID, key.Algorithm, certificate)
			if err := printJSON(out, key.JWK); err != nil || key.Pending == nil {
				return err
			}
			fmt.Fprintf(out, "\na new key waits for the issuer to know it (broker keys rotate %s):\nkid          %s\nalg          %s\n", key.Client, key.Pending.KeyID, key.Pending.Algorithm)
			return printJSON(out, key.Pending.JWK)
		}}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func keysExport(s *sockets) *cobra.Command {
	format := "jwk"
	formats := []string{"jwk", "jwks", "pem", "certificate"}
	c := &cobra.Command{Use: "export CLIENT", Short: "Print the public half as an issuer wants it", Args: oneClient,
		Long: "Print the public half of the client's key: jwk, one key (RFC 7517); jwks, a set of one, to be published by whoever\n" +
			"has a web server; pem, a PUBLIC KEY (RFC 5280); or certificate, the self-signed one.",
		Example: "  broker keys export acm --format jwk > acm.jwk.json\n  broker keys export geosecure --format certificate",
		RunE: func(cmd *cobra.Command, args []string) error {
			if !slices.Contains(formats, format) {
				return usageError{fmt.Errorf("--format %s is unknown: one of %s", format, strings.Join(formats, ", "))}
			}
			key, err := s.administration().Key(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return export(cmd.OutOrStdout(), key, format)
		}}
	c.Flags().StringVar(&format, "format", format, "one of "+strings.Join(formats, ", "))
	return c
}

func export(out io.Writer, key *client.Key, format string) error {
	switch format {
	case "jwk":
		return printJSON(out, key.JWK)
	case "jwks":
		return printJSON(out, map[string][]json.RawMessage{"keys": {key.JWK}})
	case "certificate":
		if key.Certificate == "" {
			return failure{exitData, fmt.Errorf("the secret of %s has no certificate: export the key as jwk or pem, or make one around the key with broker keys new %[1]s --certificate", key.Client)}
		}
		_, err := io.WriteString(out, strings.TrimRight(key.Certificate, "\n")+"\n")
		return err
	}
	public, err := publicKey(key.JWK)
	if err != nil {
		return failure{exitData, err}
	}
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return failure{exitData, fmt.Errorf("write the key as PEM: %w", err)}
	}
	return pem.Encode(out, &pem.Block{Type: "PUBLIC KEY", Bytes: der})
}

// publicKey reads a public JWK (RFC 7518 §6.2 and §6.3, RFC 8037 §2).
func publicKey(jwk []byte) (any, error) {
	var k struct{ Kty, Crv, N, E, X, Y string }
	if err := json.Unmarshal(jwk, &k); err != nil {
		return nil, errors.New("the key is no JSON Web Key: are broker and brokerd of one version?")
	}
	part := func(s string) []byte {
		b, err := base64.RawURLEncoding.DecodeString(s)
		if err != nil {
			return nil
		}
		return b
	}
	switch n, e, x, y := part(k.N), part(k.E), part(k.X), part(k.Y); {
	case k.Kty == "RSA" && len(n) >= 256 && len(e) > 0 && len(e) <= 4:
		return &rsa.PublicKey{N: new(big.Int).SetBytes(n), E: int(new(big.Int).SetBytes(e).Int64())}, nil
	case k.Kty == "EC" && k.Crv == "P-256" && len(x) == 32 && len(y) == 32:
		return ecdsa.ParseUncompressedPublicKey(elliptic.P256(), bytes.Join([][]byte{{4}, x, y}, nil))
	case k.Kty == "OKP" && k.Crv == "Ed25519" && len(x) == ed25519.PublicKeySize:
		return ed25519.PublicKey(x), nil
	}
	return nil, errors.New("only RSA, P-256 and Ed25519 keys can be written as PEM: export the key as jwk")
}
