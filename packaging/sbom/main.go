// Sbom says what programs are made of: a CycloneDX document, and the licences
// of every module that is linked into them. It reads what the linker wrote into
// the programs, so that both list what is in them and nothing else.
//
// The documents hold no time and no random number: the same programs give the
// same bytes.
package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"slices"
	"strings"
)

func main() {
	log.SetFlags(0)
	sbom := flag.String("sbom", "", "file for the CycloneDX document")
	version := flag.String("version", "", "version of the programs")
	revision := flag.String("revision", "", "commit that they are built from")
	licences := flag.String("licences", "", "file for the licences")
	flag.Parse()
	if err := run(context.Background(), *sbom, *licences, *version, *revision, flag.Args()); err != nil {
		log.Fatal("sbom: ", err)
	}
}

func run(ctx context.Context, sbom, licences, version, revision string, programs []string) error {
	c, err := read(programs)
	if err != nil {
		return err
	}
	c.version, c.revision = version, revision
	text, err := json.MarshalIndent(c.document(), "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(sbom, append(text, '\n'), 0o644); err != nil {
		return err
	}
	dirs, err := directories(ctx, c.modules)
	if err != nil {
		return err
	}
	all, err := gather(dirs)
	if err != nil {
		return err
	}
	return os.WriteFile(licences, all, 0o644)
}

// contents is what programs of one module are made of.
type contents struct {
	version, revision, goVersion, arch string
	programs                           []program
	modules                            map[string]*debug.Module // by path and version
}

type program struct{ name, sha256 string }

func read(programs []string) (*contents, error) {
	c := &contents{modules: map[string]*debug.Module{}}
	for _, name := range programs {
		info, err := buildinfo.ReadFile(name)
		if err != nil {
			return nil, err
		}
		data, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		sum := sha256.Sum256(data)
		c.programs = append(c.programs, program{filepath.Base(name), hex.EncodeToString(sum[:])})
		c.goVersion = info.GoVersion
		for _, s := range info.Settings {
			if s.Key == "GOARCH" {
				c.arch = s.Value
			}
		}
		for _, m := range info.Deps {
			for m.Replace != nil {
				m = m.Replace
			}
			c.modules[m.Path+"@"+m.Version] = m
		}
	}
	if len(c.modules) == 0 {
		return nil, fmt.Errorf("no module is linked into %v: these are not the programs", programs)
	}
	return c, nil
}

// A component of CycloneDX 1.5; the keys are its own.
type component struct {
	Type       string     `json:"type"`
	Ref        string     `json:"bom-ref"`
	Name       string     `json:"name"`
	Version    string     `json:"version,omitempty"`
	Hashes     []hash     `json:"hashes,omitempty"`
	PURL       string     `json:"purl,omitempty"`
	Properties []property `json:"properties,omitempty"`
}

type hash struct {
	Algorithm string `json:"alg"`
	Content   string `json:"content"`
}

type property struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

type dependency struct {
	Ref       string   `json:"ref"`
	DependsOn []string `json:"dependsOn,omitempty"`
}

type document struct {
	Format     string       `json:"bomFormat"`
	Spec       string       `json:"specVersion"`
	Serial     string       `json:"serialNumber"`
	Version    int          `json:"version"`
	Metadata   any          `json:"metadata"`
	Components []component  `json:"components"`
	Depends    []dependency `json:"dependencies"`
}

// document lists the modules as one level: programs do not say which module
// needs which.
func (c *contents) document() document {
	whole := component{Type: "application", Ref: "credential-broker", Name: "credential-broker", Version: c.version,
		Properties: []property{{"go:version", c.goVersion}, {"go:arch", c.arch}, {"vcs:revision", c.revision}}}
	d := document{Format: "CycloneDX", Spec: "1.5", Version: 1, Components: []component{}}
	depends := dependency{Ref: whole.Ref}
	add := func(one component) {
		d.Components = append(d.Components, one)
		depends.DependsOn = append(depends.DependsOn, one.Ref)
	}
	for _, p := range c.programs {
		add(component{Type: "file", Ref: "file:" + p.name, Name: p.name, Hashes: []hash{{"SHA-256", p.sha256}}})
	}
	std := "pkg:golang/std@" + strings.TrimPrefix(c.goVersion, "go")
	add(component{Type: "library", Ref: std, Name: "std", Version: strings.TrimPrefix(c.goVersion, "go"), PURL: std})
	for _, key := range slices.Sorted(maps.Keys(c.modules)) {
		m := c.modules[key]
		purl := "pkg:golang/" + strings.ToLower(m.Path) + "@" + strings.ReplaceAll(m.Version, "+", "%2B")
		add(component{Type: "library", Ref: purl, Name: m.Path, Version: m.Version, PURL: purl, Properties: []property{{"go:sum", m.Sum}}})
	}
	d.Depends = []dependency{depends}
	d.Metadata = map[string]any{"component": whole}
	d.Serial = c.serial()
	return d
}

// serial names the document by what it is about (a UUID of version 8).
func (c *contents) serial() string {
	h := sha256.New()
	for _, p := range c.programs {
		fmt.Fprintln(h, p.name, p.sha256)
	}
	b := h.Sum(nil)[:16]
	b[6], b[8] = b[6]&0x0f|0x80, b[8]&0x3f|0x80
	return fmt.Sprintf("urn:uuid:%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// directories finds the source of each module, and of Go itself.
func directories(ctx context.Context, modules map[string]*debug.Module) (map[string]string, error) {
	out, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Path}}@{{.Version}}\t{{.Dir}}", "all").Output()
	if err != nil {
		return nil, fmt.Errorf("go list -m all: %w", err)
	}
	dirs := map[string]string{}
	for line := range strings.Lines(string(out)) {
		module, dir, _ := strings.Cut(strings.TrimSpace(line), "\t")
		if modules[module] != nil {
			dirs[module] = dir
		}
	}
	for module := range modules {
		if dirs[module] == "" {
			return nil, fmt.Errorf("%s is not in the module cache: go mod download", module)
		}
	}
	root, err := exec.CommandContext(ctx, "go", "env", "GOROOT").Output()
	if err != nil {
		return nil, fmt.Errorf("go env GOROOT: %w", err)
	}
	dirs["the Go programming language"] = strings.TrimSpace(string(root))
	return dirs, nil
}

var legal = regexp.MustCompile(`(?i)^(licen[sc]e|copying|notice|copyright|patents)([-.].*)?$`)

// gather writes the licences and notices of all modules, each text once.
func gather(dirs map[string]string) ([]byte, error) {
	users := map[string][]string{} // who has a text
	for _, module := range slices.Sorted(maps.Keys(dirs)) {
		entries, err := os.ReadDir(dirs[module])
		if err != nil {
			return nil, err
		}
		found := false
		for _, e := range entries {
			if !legal.MatchString(e.Name()) || !e.Type().IsRegular() {
				continue
			}
			text, err := os.ReadFile(filepath.Join(dirs[module], e.Name()))
			if err != nil {
				return nil, err
			}
			key := strings.TrimSpace(strings.ReplaceAll(string(text), "\r\n", "\n"))
			users[key], found = append(users[key], module), true
		}
		if !found {
			return nil, fmt.Errorf("%s has no file that says its licence: look at %s", module, dirs[module])
		}
	}
	var b bytes.Buffer
	texts := slices.SortedFunc(maps.Keys(users), func(x, y string) int {
		return strings.Compare(users[x][0]+x, users[y][0]+y)
	})
	for _, text := range texts {
		fmt.Fprintf(&b, "%s\n%s\n\n%s\n\n\n", strings.Repeat("=", 78), strings.Join(users[text], "\n"), text)
	}
	return b.Bytes(), nil
}
