package azure

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/goccy/go-yaml"
)

func scope() policy.TokenRequestOptions {
	return policy.TokenRequestOptions{Scopes: []string{"https://vault.azure.net/.default"}}
}

const sample = `
vault_url: https://name.vault.azure.net
authority: https://login.microsoftonline.us
ca_file: /etc/ca.pem
auth: { managed_identity: {} }
`

func TestConfigReads(t *testing.T) {
	var c Config
	if err := yaml.UnmarshalWithOptions([]byte(sample), &c, yaml.Strict()); err != nil {
		t.Fatal(err)
	}
	if err := c.Validate(); err != nil || c.Auth.ManagedIdentity == nil || c.CAFile != "/etc/ca.pem" {
		t.Errorf("%+v: %v", c, err)
	}
	b, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	var back Config
	if err := json.Unmarshal(b, &back); err != nil || back.VaultURL != c.VaultURL || back.Auth.ManagedIdentity == nil {
		t.Errorf("%s: %v", b, err)
	}
}

func TestValidate(t *testing.T) {
	const vault = "https://name.vault.azure.net"
	for _, c := range []struct {
		name string
		c    Config
		want string // "": valid
	}{
		{"default chain", Config{VaultURL: vault + "/"}, ""},
		{"no vault", Config{}, "vault_url: missing"},
		{"clear text", Config{VaultURL: "http://127.0.0.1:8080"}, "vault_url: want https"},
		{"a secret's URL", Config{VaultURL: vault + "/secrets/x"}, "vault_url: want"},
		{"a password", Config{VaultURL: "https://u:p@name.vault.azure.net"}, "vault_url: want"},
		{"authority", Config{VaultURL: vault, Authority: "login.example"}, "authority: want"},
		{"two sources", Config{VaultURL: vault, Auth: auth{Environment: true, ManagedIdentity: &managedIdentity{}}}, "auth: managed_identity and environment"},
		{"half a secret", Config{VaultURL: vault, Auth: auth{ClientSecret: &clientSecret{}}}, "auth.client_secret.client_secret_file: missing"},
		{"half a certificate", Config{VaultURL: vault, Auth: auth{ClientCertificate: &clientCertificate{}}}, "auth.client_certificate.tenant_id: missing"},
	} {
		err := c.c.Validate()
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
}
