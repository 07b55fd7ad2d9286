//go:build real

package clients

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"credentialbroker/integration/real"
)

// A recipe is a block of clients/README.md, and what runs it.
type recipe struct {
	language, body string
	command        []string
}

// recipes are those of the document, in its order.
func recipes(t *testing.T) (list []recipe) {
	t.Helper()
	text, err := os.ReadFile(source("clients", "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	commands := map[string][]string{"sh": {"dash"}, "python": {real.Path("clients-python", "venv", "bin", "python")}, "js": {"node"}, "php": {"php"}, "java": {"java"}}
	blocks := strings.Split(string(text), "```")
	for i := 1; i < len(blocks); i += 2 {
		language, body, _ := strings.Cut(blocks[i], "\n")
		command, ok := commands[language]
		if !ok {
			t.Fatalf("a block of %q, or a second one", language)
		}
		delete(commands, language)
		if language == "php" {
			body = "<?php\n" + body
		}
		list = append(list, recipe{language, body, command})
	}
	if len(commands) > 0 {
		t.Errorf("no recipe in %v", commands)
	}
	return list
}

// file writes the recipe where its language can run it.
func (r recipe) file(t *testing.T, body string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "Recipe."+strings.Replace(r.language, "js", "mjs", 1))
	if err := os.WriteFile(name, []byte(body), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// The recipes of clients/README.md as they stand there, but for the socket;
// and for a client that is refused they fail and print no header.
func TestRecipes(t *testing.T) {
	real.Row(t, "documents", "curl, Python, Node, PHP, Java", "clients/README.md: asking without a client")
	w := newWorld(t, "vdab")
	for _, r := range recipes(t) {
		t.Run(r.language, func(t *testing.T) {
			body := strings.ReplaceAll(r.body, "/run/credential-broker/broker.sock", w.path("broker.sock"))
			do := func(body string) (string, error) {
				out, err := exec.CommandContext(t.Context(), r.command[0], append(r.command[1:], r.file(t, body))...).CombinedOutput()
				return string(out), err
			}
			if out, err := do(body); err != nil || strings.Join(strings.Fields(out), " ") != "Authorization X-IBM-Client-Id" {
				t.Errorf("%v\n%s", err, out)
			}
			if out, err := do(strings.ReplaceAll(body, "clients/vdab", "clients/nobody")); err == nil || strings.Contains(out, "Authorization") {
				t.Errorf("a refused recipe: %v\n%s", err, out)
			}
		})
	}
}
