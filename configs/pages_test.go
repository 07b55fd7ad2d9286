package configs

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// documents are all pages for people, by their path from the root of the
// source.
func documents(t *testing.T) map[string]string {
	t.Helper()
	pages := map[string]string{}
	names := []string{"../README.md", "../CONTRIBUTING.md", "../SECURITY.md", "../clients/README.md"}
	err := filepath.WalkDir("../docs", func(path string, _ fs.DirEntry, err error) error {
		if strings.HasSuffix(path, ".md") {
			names = append(names, path)
		}
		return err
	})
	if err != nil || len(names) < 25 {
		t.Fatal(names, err)
	}
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		pages[strings.TrimPrefix(name, "../")] = string(text)
	}
	return pages
}

var (
	fenced = regexp.MustCompile("(?ms)^```(\\w*)\n(.*?)^```$")
	linked = regexp.MustCompile(`\]\(([^):#]*)(?:#([^)]*))?\)`)
)

// TestLinks follows every link between the documents, and into the source.
func TestLinks(t *testing.T) {
	pages := documents(t)
	led := map[string]bool{"README.md": true}
	for name, text := range pages {
		for _, m := range linked.FindAllStringSubmatch(fenced.ReplaceAllString(text, ""), -1) {
			target, where := text, filepath.Join(filepath.Dir(name), m[1])
			if m[1] != "" {
				info, err := os.Stat(filepath.Join("..", where))
				if err != nil {
					t.Errorf("%s: %v", name, err)
					continue
				}
				if info.IsDir() {
					continue
				}
				b, err := os.ReadFile(filepath.Join("..", where))
				if err != nil {
					t.Fatal(err)
				}
				target = string(b)
				led[where] = led[where] || name == "docs/README.md" || name == "README.md"
			}
			if m[2] != "" && !strings.Contains(target, `id="`+m[2]+`"`) && !slices.Contains(anchors(target), m[2]) {
				t.Errorf("%s: nothing in %s is called #%s", name, where, m[2])
			}
		}
	}
	for name := range pages {
		if !led[name] {
			t.Errorf("neither README.md nor docs/README.md leads to %s", name)
		}
	}
}

// anchors are the names that headings get.
func anchors(text string) (all []string) {
	drop := regexp.MustCompile(`[^\p{L}\p{N} _-]`)
	for line := range strings.Lines(fenced.ReplaceAllString(text, "")) {
		if h := strings.TrimLeft(line, "#"); h != line {
			all = append(all, strings.ReplaceAll(drop.ReplaceAllString(strings.ToLower(strings.TrimSpace(h)), ""), " ", "-"))
		}
	}
	return all
}

// TestCommandsAreRun sees to it that some test runs the commands of each page.
// Here are those of which that cannot be read off the tests, and who does.
func TestCommandsAreRun(t *testing.T) {
	elsewhere := map[string]string{
		"README.md":         "integration/e2e",
		"clients/README.md": "integration/clients",
		"docs/issuers":      "integration/issuers",
		"CONTRIBUTING.md":   ".ci/run",
		"docs/install.md":   "integration/package, in words of its own",
		"docs/providers.md": "integration/file, in words of its own",
	}
	var sources strings.Builder
	for _, dir := range []string{"../cmd", "../integration"} {
		err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(path, "_test.go") && !strings.HasSuffix(path, ".txtar") {
				return err
			}
			text, err := os.ReadFile(path)
			sources.Write(text)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	runs := regexp.MustCompile(`(?m)^(?:page|run|shown) (?:\$SRC/docs/)?(\S+\.md)|"docs", "([a-z-]+\.md)"|docs/([a-z-]+\.md)"`)
	run := map[string]bool{}
	for _, m := range runs.FindAllStringSubmatch(sources.String(), -1) {
		run["docs/"+strings.TrimPrefix(m[1]+m[2]+m[3], "$SRC/docs/")] = true
	}
	for name, text := range documents(t) {
		for _, block := range fenced.FindAllStringSubmatch(text, -1) {
			if (block[1] == "console" || block[1] == "sh") && !run[name] && elsewhere[name] == "" && elsewhere[filepath.Dir(name)] == "" {
				t.Errorf("no test runs the commands of %s", name)
				break
			}
		}
	}
}

// TestThreatModel finds the tests that the threat model rests on, and those
// that other documents name.
func TestThreatModel(t *testing.T) {
	named := regexp.MustCompile("\\[`(Test\\w+)`\\]\\(([^)]*)\\)")
	found := 0
	for name, text := range documents(t) {
		for _, m := range named.FindAllStringSubmatch(text, -1) {
			source, err := os.ReadFile(filepath.Join("..", filepath.Dir(name), m[2]))
			if err != nil || !strings.Contains(string(source), "\nfunc "+m[1]+"(t *testing.T) {") {
				t.Errorf("%s: %s has no %s: %v", name, m[2], m[1], err)
			}
			found++
		}
	}
	if found < 25 {
		t.Errorf("%d tests are named", found)
	}
}

// TestFirstClientExamples loads the client of the page with each of its
// secrets managers, and the configuration for break-glass.
func TestFirstClientExamples(t *testing.T) {
	t.Setenv("CREDENTIALS_DIRECTORY", "/run/credentials/test")
	pages := documents(t)
	var client string
	var managers []string
	for _, m := range fenced.FindAllStringSubmatch(pages["docs/first-client.md"], -1) {
		switch {
		case m[1] != "yaml":
		case strings.HasPrefix(m[2], "clients:"):
			client = m[2]
		default:
			managers = append(managers, m[2])
		}
	}
	kinds := map[string]bool{}
	for _, text := range managers {
		c, err := load(t, map[string]string{"broker.yaml": text, "clients.d/vdab.yaml": client})
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		kinds[c.Providers["corp"].Kind()] = true
	}
	if len(kinds) != 7 {
		t.Errorf("managers: %v", kinds)
	}
	for _, m := range fenced.FindAllStringSubmatch(pages["docs/break-glass.md"], -1) {
		if m[1] == "yaml" {
			if _, err := load(t, map[string]string{"broker.yaml": m[2]}); err != nil {
				t.Error(err)
			}
		}
	}
}
