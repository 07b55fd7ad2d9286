//go:build real

package issuers

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"

	"credentialbroker/api/client"
	"credentialbroker/integration/real"
)

// round is a part of a page: clients that can live beside each other, and the
// commands that follow them. Where a page shows a client once more, in another
// configuration, the next round begins.
type round struct {
	clients  map[string]map[string]any
	commands []string
	last     []string // commands of another place of the page, when all else is done
}

// mentions are what the text calls commands by without their arguments.
var mentions = []string{"broker intake", "broker keys new", "broker login", "broker revoke"}

// elsewhere are commands that need another client than the one before them:
// the one whose grant this is.
var elsewhere = map[string]string{"broker revoke partner": "authorization_code", "broker revoke partner --login": "authorization_code"}

// known are the commands that the pages show. Others need a thought about what
// a person does before and after.
var known = regexp.MustCompile(`^(echo '[^']*' \| )?broker (check|reload|status|token|headers|jwt|presets|retry|rotate|revoke|login|keys (new|show|export))( |$)`)

// fence is a block of a page.
var fence = regexp.MustCompile("(?ms)^```(\\w*)\n(.*?)^```$")

func readPage(t *testing.T, name string) []*round {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(real.Root(), "docs", "issuers", name))
	if err != nil {
		t.Fatal(err)
	}
	text, from := string(raw), 0
	p := &pageReader{t: t, rounds: []*round{{clients: map[string]map[string]any{}}}}
	for _, m := range fence.FindAllStringSubmatchIndex(text, -1) {
		p.prose(text[from:m[0]])
		p.fenced(text[m[2]:m[3]], text[m[4]:m[5]])
		from = m[1]
	}
	p.prose(text[from:])
	return p.rounds
}

type pageReader struct {
	t      *testing.T
	rounds []*round
}

// prose has commands in backquotes. Those with a placeholder are none.
func (p *pageReader) prose(text string) {
	for _, m := range regexp.MustCompile("`(broker [^`]*)`").FindAllStringSubmatch(text, -1) {
		command := strings.Join(strings.Fields(m[1]), " ")
		if !regexp.MustCompile(`[A-Z]{4}`).MatchString(command) && !slices.Contains(mentions, command) {
			p.command(command)
		}
	}
}

func (p *pageReader) fenced(language, text string) {
	p.t.Helper()
	switch language {
	case "console":
		for line := range strings.Lines(text) {
			p.command(strings.TrimSpace(line))
		}
	case "yaml":
		var file struct {
			Clients map[string]map[string]any `yaml:"clients"`
		}
		if err := yaml.UnmarshalWithOptions([]byte(text), &file, yaml.Strict()); err != nil || len(file.Clients) != 1 {
			p.t.Fatalf("no file of clients.d: %v\n%s", err, text)
		}
		for name, c := range file.Clients {
			r := p.rounds[len(p.rounds)-1]
			if r.clients[name] != nil {
				r = &round{clients: map[string]map[string]any{}}
				p.rounds = append(p.rounds, r)
			}
			r.clients[name] = c
		}
	default:
		p.t.Fatalf("nobody knows what to do with a block of %q", language)
	}
}

func (p *pageReader) command(line string) {
	p.t.Helper()
	if !known.MatchString(line) {
		p.t.Fatalf("nobody knows how to serve the command %q", line)
	}
	grant, ok := elsewhere[line]
	if !ok {
		r := p.rounds[len(p.rounds)-1]
		r.commands = append(r.commands, line)
		return
	}
	for _, r := range p.rounds {
		for _, c := range r.clients {
			if c["grant"] == grant {
				r.last = append(r.last, line)
				return
			}
		}
	}
	p.t.Fatalf("no client before %q has the grant %s", line, grant)
}

// TestDocuments runs the pages of the issuers: what they configure and what
// they have a person type, in their order, against the fakes.
func TestDocuments(t *testing.T) {
	pages, err := filepath.Glob(filepath.Join(real.Root(), "docs", "issuers", "*.md"))
	if err != nil || len(pages) == 0 {
		t.Fatal(pages, err)
	}
	for _, page := range pages {
		name := filepath.Base(page)
		t.Run(name, func(t *testing.T) {
			real.Row(t, "documents", "fakes of the documents", "docs/issuers/"+name+": every block and command")
			rounds, late := readPage(t, name), false
			if len(rounds[0].clients) == 0 { // what is the same for all, with VDAB's client
				rounds[0].clients, late = readPage(t, "vdab.md")[0].clients, true
			}
			executed := 0
			for i, r := range rounds {
				t.Run(fmt.Sprint(i+1), func(t *testing.T) { executed += r.run(t, late) })
			}
			if executed == 0 && !t.Failed() {
				t.Error("the page has no command")
			}
		})
	}
	for _, name := range []string{"errors.md", "providers.md"} {
		text, err := os.ReadFile(filepath.Join(real.Root(), "docs", name))
		if err != nil || bytes.Contains(text, []byte("```console")) || bytes.Contains(text, []byte("\nbroker ")) {
			t.Errorf("docs/%s has commands of the broker, which nobody executes: %v", name, err)
		}
	}
}

// stage is a world in which a round is played.
type stage struct {
	*world
	parties map[string]*party
	done    map[string]bool // clients whose key has been uploaded, or whose person has logged in
}

// party is what stands behind a client: its fake, and its person.
type party struct {
	path    string // of its secret
	use     func(*testing.T)
	upload  func(exported string) error          // to the issuer; nil: the client has no key
	browser func(start string, stop bool) string // nil: nobody logs in
	renew   func()                               // makes the issuer take a new version, and stores it; nil: not needed
}

// run plays the round, and counts its commands. With late the daemon starts
// before the clients are written.
func (r *round) run(t *testing.T, late bool) int {
	s := &stage{world: newWorld(t), parties: map[string]*party{}, done: map[string]bool{}}
	config := fmt.Sprintf("providers:\n  corp:\n    file: { path: %s, identity_file: %s, insecure_identity: true }\naudit: { anchor: none }\n"+
		// No client of production is without a way to report its leak.
		"leak_by_hand: this host talks to no relay\n", s.path("secrets"), s.path("identity"))
	s.write("broker.yaml", config)
	if err := os.Mkdir(s.path("clients.d"), 0o700); err != nil {
		t.Fatal(err)
	}
	if late {
		s.serve()
	}
	for name, c := range r.clients {
		s.parties[name] = s.party(name, c)
		text, err := yaml.Marshal(map[string]any{"clients": map[string]any{name: c}})
		if err != nil {
			t.Fatal(err)
		}
		s.write("clients.d/"+name+".yaml", string(text))
	}
	for line := range strings.Lines(s.sh(t, "broker check --egress")) {
		if !strings.HasPrefix(line, "127.0.0.1:") {
			t.Fatalf("the daemon would go out: %s", line)
		}
	}
	if !late {
		s.serve()
	}
	for _, line := range r.commands {
		s.command(t, line)
	}
	for _, name := range slices.Sorted(maps.Keys(s.parties)) {
		s.finish(t, name, r.clients[name])
		s.parties[name].use(t)
	}
	for _, line := range r.last {
		s.command(t, line)
	}
	return len(r.commands) + len(r.last)
}

func (s *stage) write(name, text string) {
	s.t.Helper()
	if err := os.WriteFile(s.path(name), []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

// finish does for a client what its page leaves to the text.
func (s *stage) finish(t *testing.T, name string, c map[string]any) {
	t.Helper()
	p := s.parties[name]
	switch {
	case s.done[name]:
	case p.upload != nil:
		format := "jwk"
		if auth, _ := c["client_auth"].(string); strings.Contains(auth, "tls") {
			s.command(t, "broker keys new "+name+" --certificate")
			format = "certificate"
		} else {
			s.command(t, "broker keys new "+name)
		}
		s.command(t, "broker keys export "+name+" --format "+format)
		s.command(t, "broker retry "+name)
	case p.browser != nil:
		s.command(t, "broker login "+name)
	}
}

// command runs a line as it is printed, and does what a person does with it.
func (s *stage) command(t *testing.T, line string) {
	t.Helper()
	t.Logf("$ %s", line)
	words := strings.Fields(line)
	name := ""
	for _, word := range words {
		if s.parties[word] != nil {
			name = word
		}
	}
	p := s.parties[name]
	switch {
	case strings.HasPrefix(line, "broker login "):
		if p == nil || p.browser == nil {
			t.Fatalf("%s: nobody can log in", line)
		}
		paste := slices.Contains(words, "--paste")
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		s.converse(t, s.bash(ctx, line), paste, func(start string) string { return p.browser(start, paste) })
		s.done[name] = true
	case strings.HasPrefix(line, "broker rotate ") && slices.Contains(words, "--accept"):
		if p == nil || p.renew == nil {
			t.Fatalf("%s: there is no new version", line)
		}
		before := s.status(t, name).Version
		p.renew()
		s.sh(t, line)
		if after := s.status(t, name).Version; after == before || after == "" {
			t.Errorf("%s: version %q serves, and before it %q", line, after, before)
		}
		p.use(t)
	default:
		out := s.sh(t, line)
		if strings.Contains(out, "not revoked") {
			t.Errorf("%s: %s", line, out)
		}
		if strings.HasPrefix(line, "broker keys export ") {
			if p == nil || p.upload == nil {
				t.Fatalf("%s: nobody takes the key", line)
			}
			if err := p.upload(out); err != nil {
				t.Fatalf("%s: the issuer does not take it: %v", line, err)
			}
			s.done[name] = true
		}
		if p != nil && strings.HasSuffix(line, " --login") {
			s.wantsLogin(t, name)
		}
	}
}

// bash is a shell as a user of the machine has it.
func (s *stage) bash(ctx context.Context, line string) *exec.Cmd {
	// Offline, check reads the file of the system: here it is told which.
	if strings.HasPrefix(line, "broker check") && !strings.Contains(line, "--live") {
		line += " --config " + s.path("broker.yaml")
	}
	cmd := exec.CommandContext(ctx, "bash", "-o", "pipefail", "-c", line)
	cmd.Env = append(os.Environ(), "PATH="+filepath.Join(real.Root(), "dist")+":"+os.Getenv("PATH"), "HOME="+s.dir, client.Environment+"="+s.path("broker.sock"))
	return cmd
}

// sh runs a line, which has to succeed.
func (s *stage) sh(t *testing.T, line string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := s.bash(ctx, line)
	var problem bytes.Buffer
	cmd.Stderr = &problem
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s%s", line, err, out, problem.String())
	}
	return string(out)
}
