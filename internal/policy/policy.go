// Package policy has the least that a secrets manager must let the broker do:
// the one place from which broker setup prints it, docs/providers.md shows it,
// and the integration suite installs it.
package policy

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
)

// Rules of this package:
//   - a policy names one secret: nothing of a name may widen it;
//   - it has a name of its own, and what puts it in force takes nothing away
//     that was put in force for another secret;
//   - what a manager's own tools need and we cannot know stands in capitals.

// A Policy is what one login may do to one secret.
type Policy struct {
	// Language of Text: hcl, json or sh. Empty: the manager has no policies.
	Language string `json:"language,omitempty"`
	// Text is the policy; for sh, the commands that grant it.
	Text string `json:"text,omitempty"`
	// Install is the commands that put Text, saved as policy.hcl or
	// policy.json, in force. Empty: none, or Text is the commands.
	Install string `json:"install,omitempty"`
	// Actions are what Text allows, in the manager's words.
	Actions []string `json:"actions,omitempty"`
	// Notes say what else may be needed.
	Notes []string `json:"notes,omitempty"`
}

// A Place is one secret, and who logs in to read it.
type Place struct {
	Path string // the secret's name

	Namespace string // Vault; empty: the one of the shell

	Mount string // Vault: of the engine; empty: secret
	KV    int    // Vault: version of the engine; 0: 2
	Role  string // Vault: AppRole that logs in; empty: another way of logging in
	Auth  string // Vault: mount of the AppRole method; empty: approle

	Region  string // AWS; empty: any
	Account string // AWS; empty: any

	VaultURL string // Azure: https://NAME.vault.azure.net

	Project string // GCP
}

// For gives the policy of a manager (vault, aws, azure, gcp, file, systemd,
// exec) for reading, or for writing too: refresh tokens, new keys, intake.
func For(manager string, p Place, write bool) (Policy, error) {
	wide := "*?\"'`\\$&{}<>|;#"
	if manager == "vault" {
		wide += "+" // any one segment of a path
	}
	for _, s := range []string{p.Path, p.Namespace, p.Mount, p.Role, p.Auth, p.Region, p.Account, p.Project} {
		if strings.ContainsAny(s, wide) || strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r == 0x7f }) {
			return Policy{}, fmt.Errorf("%q cannot stand in a policy: it has a space, a quote, or a character that would match more than one name", s)
		}
	}
	switch manager {
	case "vault":
		return vault(p, write), nil
	case "aws":
		return aws(p, write)
	case "azure":
		return azure(p, write)
	case "gcp":
		return gcp(p, write), nil
	case "file":
		return Policy{Notes: []string{"the directory and its files are read by the user credential-broker; to write, that user has to own the directory, and the unit needs ReadWritePaths= for it"}}, nil
	case "systemd":
		return Policy{Notes: []string{"systemd decrypts the secret for the unit: nobody is asked for a permission"}}, nil
	case "exec":
		return Policy{Notes: []string{"what the command may do is up to its secrets manager: let it read the one secret"}}, nil
	}
	return Policy{}, fmt.Errorf("no secrets manager is called %q", manager)
}

func vault(p Place, write bool) Policy {
	mount, path := strings.Trim(cmp.Or(p.Mount, "secret"), "/"), strings.Trim(p.Path, "/")
	capabilities := `["read"]`
	out := Policy{Language: "hcl", Actions: []string{"read"}}
	if write {
		capabilities, out.Actions = `["create", "read", "update"]`, []string{"create", "read", "update"}
	}
	if p.KV == 1 {
		out.Text = fmt.Sprintf("path %q { capabilities = %s }\n", mount+"/"+path, capabilities)
	} else {
		out.Text = fmt.Sprintf("path %q { capabilities = %s }\n", mount+"/data/"+path, capabilities) +
			"# To notice a new version without reading the value.\n" +
			fmt.Sprintf("path %q { capabilities = [\"read\"] }\n", mount+"/metadata/"+path)
	}
	name, in := name(mount+"/"+path), ""
	if p.Namespace != "" {
		in = "-namespace=" + p.Namespace + " "
	}
	out.Install = "vault policy write " + in + name + " policy.hcl\n"
	if p.Role != "" {
		role := "auth/" + strings.Trim(cmp.Or(p.Auth, "approle"), "/") + "/role/" + p.Role
		out.Text += "# To warn before the secret-id itself expires.\n" +
			fmt.Sprintf("path %q { capabilities = [\"update\"] }\n", role+"/secret-id/lookup")
		// A role that is there keeps its policies: they are for other secrets.
		out.Install += "vault write " + in + role + " token_ttl=1h token_policies=\"$(vault read " + in + "-field=token_policies " + role +
			" 2>/dev/null | tr -d '[]' | tr ' ' ,),\"" + name + "\n" +
			"vault read " + in + "-field=role_id " + role + "/role-id\n" +
			"vault write -f " + in + "-field=secret_id " + role + "/secret-id\n"
	}
	return out
}

// name is what the policy for a secret is called.
func name(path string) string {
	return "credential-broker-" + strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_' || r == '.' {
			return r
		}
		return '-'
	}, strings.Trim(path, "/"))
}

// aws names the secret with the six characters that Secrets Manager puts behind
// each name: a star would let it read secrets whose names only begin the same.
func aws(p Place, write bool) (Policy, error) {
	type statement struct {
		Effect   string
		Action   []string
		Resource string
	}
	out := Policy{Language: "json", Actions: []string{"secretsmanager:GetSecretValue", "secretsmanager:DescribeSecret"},
		Install: "aws iam put-role-policy --role-name ROLE --policy-name " + name(p.Path) + " --policy-document file://policy.json\n",
		Notes:   []string{"a secret that is encrypted with a key of your own needs kms:Decrypt on that key too"}}
	if write {
		out.Actions = append(out.Actions, "secretsmanager:PutSecretValue", "secretsmanager:UpdateSecretVersionStage")
		out.Notes = []string{"a secret that is encrypted with a key of your own needs kms:Decrypt and kms:GenerateDataKey on that key too",
			"a secret that does not exist yet needs secretsmanager:CreateSecret too, once"}
	}
	resource := p.Path
	if !strings.HasPrefix(resource, "arn:") {
		resource = fmt.Sprintf("arn:aws:secretsmanager:%s:%s:secret:%s-??????", cmp.Or(p.Region, "*"), cmp.Or(p.Account, "*"), p.Path)
	}
	text, err := indented(struct {
		Version   string
		Statement []statement
	}{"2012-10-17", []statement{{"Allow", out.Actions, resource}}})
	out.Text = text
	return out, err
}

func azure(p Place, write bool) (Policy, error) {
	vault := "VAULT"
	if u, err := url.Parse(p.VaultURL); err == nil && u.Hostname() != "" {
		vault, _, _ = strings.Cut(u.Hostname(), ".")
	}
	scope := "/subscriptions/SUBSCRIPTION/resourceGroups/GROUP/providers/Microsoft.KeyVault/vaults/" + vault
	assign := func(role string) string {
		return fmt.Sprintf("az role assignment create --role %q --assignee PRINCIPAL \\\n  --scope %s/secrets/%s\n", role, scope, p.Path)
	}
	const below = "Microsoft.KeyVault/vaults/secrets/"
	read := []string{below + "getSecret/action", below + "readMetadata/action"}
	if !write {
		return Policy{Language: "sh", Text: assign("Key Vault Secrets User"), Actions: read,
			Notes: []string{"the vault has to use Azure role-based access control; PRINCIPAL is the object id of the identity that logs in"}}, nil
	}
	// The ready-made role for writing, Key Vault Secrets Officer, may delete too.
	const role = "Credential broker, read and write"
	actions := append(read, below+"setSecret/action")
	text, err := indented(struct {
		Name, Description                      string
		IsCustom                               bool
		Actions, DataActions, AssignableScopes []string
	}{role, "Reads secrets, and adds versions to them.", true, []string{}, actions, []string{"/subscriptions/SUBSCRIPTION/resourceGroups/GROUP"}})
	return Policy{Language: "json", Text: text, Install: "az role definition create --role-definition @policy.json\n" + assign(role), Actions: actions,
		Notes: []string{"the vault has to use Azure role-based access control; PRINCIPAL is the object id of the identity that logs in",
			"the role is the same for all secrets: it is created once"}}, err
}

func gcp(p Place, write bool) Policy {
	out := Policy{Language: "sh", Actions: []string{"secretmanager.versions.access"},
		Notes: []string{"the age of a version is known only with secretmanager.versions.get, as roles/secretmanager.viewer has it"}}
	roles := []string{"secretAccessor"}
	if write {
		roles = append(roles, "secretVersionAdder")
		out.Actions = append(out.Actions, "secretmanager.versions.add")
		out.Notes = append(out.Notes, "the secret has to exist, if only without a version")
	}
	name, project := p.Path, cmp.Or(p.Project, "PROJECT")
	if rest, ok := strings.CutPrefix(name, "projects/"); ok {
		project, name, _ = strings.Cut(rest, "/secrets/")
	}
	for _, role := range roles {
		out.Text += fmt.Sprintf("gcloud secrets add-iam-policy-binding %s --project=%s \\\n  --role=roles/secretmanager.%s --member=serviceAccount:ACCOUNT@%[2]s.iam.gserviceaccount.com\n", name, project, role)
	}
	return out
}

func indented(v any) (string, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	err := e.Encode(v)
	return b.String(), err
}
