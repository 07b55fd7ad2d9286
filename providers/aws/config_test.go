package aws

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
)

const sample = `
region: eu-west-1
endpoint: https://vpce.example
ca_file: /etc/ca.pem
proxy: http://proxy.example:3128
auth:
  static: { access_key_id_file: /c/id, secret_access_key_file: /c/key }
  assume_role: { role_arn: "arn:aws:iam::123456789012:role/broker", external_id_file: /c/external }
`

func TestConfigReads(t *testing.T) {
	var c Config
	if err := yaml.UnmarshalWithOptions([]byte(sample), &c, yaml.Strict()); err != nil {
		t.Fatal(err)
	}
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
	if c.Region != "eu-west-1" || c.Auth.Static.SecretAccessKeyFile != "/c/key" || c.CAFile != "/etc/ca.pem" ||
		c.Auth.AssumeRole.ExternalIDFile != "/c/external" || c.Proxy == "" {
		t.Errorf("%+v", c)
	}
	b, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	var back Config
	if err := json.Unmarshal(b, &back); err != nil || *back.Auth.Static != *c.Auth.Static || back.CAFile != c.CAFile {
		t.Errorf("%s: %v", b, err)
	}
}

func TestValidate(t *testing.T) {
	role := &assumeRole{RoleARN: fakeRole}
	for _, c := range []struct {
		name string
		c    Config
		want string // "": valid
	}{
		{"nothing", Config{}, ""},
		{"role on the default chain", Config{Auth: auth{AssumeRole: role}}, ""},
		{"emulator", Config{Endpoint: "http://127.0.0.1:5000"}, ""},
		{"clear text", Config{Endpoint: "http://sm.example"}, "endpoint: want https"},
		{"password in a URL", Config{STSEndpoint: "https://u:p@sts.example"}, "sts_endpoint: want https"},
		{"no URL", Config{Endpoint: "sm.example"}, "endpoint: want"},
		{"region with a host in it", Config{Region: "x.evil.example/"}, "region:"},
		{"two sources", Config{Auth: auth{Instance: true, Environment: true}}, "auth: environment and instance: choose one"},
		{"half a key", Config{Auth: auth{Static: &static{AccessKeyIDFile: "/c/id"}}}, "auth.static.secret_access_key_file: missing"},
		{"no role", Config{Auth: auth{AssumeRole: &assumeRole{}}}, "auth.assume_role.role_arn"},
		{"user for a role", Config{Auth: auth{WebIdentity: &webIdentity{RoleARN: "arn:aws:iam::1:user/x"}}}, "auth.web_identity.role_arn"},
	} {
		err := c.c.Validate()
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
	both := Config{Region: "EU", Endpoint: "ftp://x"}.Validate()
	if both == nil || !strings.Contains(both.Error(), "region") || !strings.Contains(both.Error(), "endpoint") {
		t.Errorf("not all errors at once: %v", both)
	}
}

func TestRegionOfTheEnvironment(t *testing.T) {
	isolate(t)
	if _, err := (Config{}).region(); err == nil || !strings.Contains(err.Error(), "AWS_REGION") {
		t.Errorf("no region: %v", err)
	}
	t.Setenv("AWS_DEFAULT_REGION", "eu-north-1")
	if r, _ := (Config{}).region(); r != "eu-north-1" {
		t.Error(r)
	}
	t.Setenv("AWS_REGION", "eu-west-3")
	if r, _ := (Config{}).region(); r != "eu-west-3" {
		t.Error(r)
	}
	if r, _ := (Config{Region: "eu-west-1"}).region(); r != "eu-west-1" {
		t.Error(r)
	}
}
