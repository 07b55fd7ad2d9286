//go:build real

package clients

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"text/tabwriter"
	"time"

	"credentialbroker/api/client"
	"credentialbroker/integration/real"
)

// surface is one row: a program that gets the token in one way.
type surface struct {
	name, language string
	command        []string
	env            []string
	again          bool     // it knows REPEAT
	upstream       string   // the path of the API where the token must arrive; empty: the program prints it
	cgroup         *os.File // in which it runs; nil: the test's
}

// TestSurfaces gets one token through every surface in every language: it has
// to be the one that the daemon holds, and the issuer has to have minted one
// alone. At the end it prints the table. What a row costs is told, and judged
// by nobody.
func TestSurfaces(t *testing.T) {
	const processes, readings = 5, 200
	saw := &sightings{tokens: map[string][]string{}}
	site := httptest.NewServer(saw)
	defer site.Close()
	memory, err := os.MkdirTemp("/dev/shm", "surfaces-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(memory)
	port, api := real.FreeAddr(t), real.FreeAddr(t)
	w := newWorldOf(t, fmt.Sprintf(`      - { unit: surfaces.service, surfaces: [credential], restart: true }
    files:
      - { path: %[1]s/token.env, format: dotenv }
      - { path: %[1]s/token.json, format: json }
    loopback: { address: "%[2]s", insecure_loopback: true }
    reverse_proxy:
      - name: api
        upstream: %[3]s
        upstream_user: "%[4]d"
        loopback: { address: "%[5]s", insecure_loopback: true }
`, memory, port, site.URL, os.Getuid(), api), "vdab")
	tok, err := w.ask.Token(t.Context(), "vdab", client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	want, secrets := tok.Fingerprint, strings.NewReplacer(tok.AccessToken, "[token]", "secret-one", "[secret]", "key-one", "[key]")
	awaitFiles(t, memory+"/token.env", memory+"/token.json")

	var text bytes.Buffer
	table := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	fmt.Fprint(table, "SURFACE\tLANGUAGE\tRESULT\tPROCESS ms\tAGAIN µs\n")
	var ran []string
	rows := w.surfaces(t, memory, port, api)
	for _, s := range rows {
		ran = append(ran, "surfaces | "+s.language+" | "+s.name)
		t.Run(s.name+"/"+s.language, func(t *testing.T) {
			real.Row(t, "surfaces", s.language, s.name)
			m, err := s.measure(t.Context(), w.path("broker.sock"), processes, readings, want)
			if err == nil && s.upstream != "" {
				err = saw.only(s.upstream, want, m.processes+m.readings)
			}
			result := "ok: the same token"
			switch {
			case err != nil:
				t.Error(secrets.Replace(err.Error()))
				result = "FAILED: see below"
			case s.upstream != "":
				result = "ok: the API got the same"
			}
			fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\n", s.name, s.language, result, m.process, m.again)
		})
	}
	if minted := w.issuer.Stats().Minted; minted != 1 {
		t.Errorf("the issuer minted %d tokens, not one", minted)
	}
	if now, err := w.ask.Token(t.Context(), "vdab", client.Options{}); err != nil || now.Fingerprint != want {
		t.Errorf("at the end the daemon holds another token, or none: %v", err)
	}
	missing(t, append(ran, "surfaces | all of them | "+contained))
	_ = table.Flush()
	fmt.Printf("\n%s\nOne token, fingerprint %s; tokens minted: %d.\nPROCESS: a whole process that gets it, the median of %d. AGAIN: one more reading in one that goes on, of %d.\n\n",
		text.String(), want, w.issuer.Stats().Minted, processes, readings)

	t.Run("quarantine", func(t *testing.T) { w.quarantineEnds(t, rows, want, memory) })
}

const contained = "quarantined by one command: none gives the token; files are gone, children and streams ended"

// quarantineEnds: one command, and the token comes by none of the rows any
// more; what runs with it is told.
func (w *world) quarantineEnds(t *testing.T, rows []surface, want, files string) {
	real.Row(t, "surfaces", "all of them", contained)
	started := w.path("started")
	child := exec.Command(filepath.Join(real.Root(), "dist", "broker"), "--socket", w.path("broker.sock"), "exec", "vdab", "--", "sh", "-c", `: >"$0"; exec sleep 300`, started)
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	stream, begun := make(chan error, 1), make(chan struct{}, 1)
	go func() {
		for _, err := range w.ask.Events(context.Background(), "vdab", client.Options{}) {
			if err != nil {
				stream <- err
				return
			}
			begun <- struct{}{}
		}
		stream <- nil
	}()
	<-begun
	awaitFiles(t, started)

	w.quarantine(t, "vdab")
	for _, s := range rows {
		out, err := s.run(t.Context(), w.path("broker.sock"))
		if err == nil {
			err = s.arrived(out, want)
		}
		if err == nil {
			t.Errorf("%s, %s: the token still comes", s.name, s.language)
		}
	}
	if left, err := os.ReadDir(files); err != nil || len(left) != 0 {
		t.Errorf("files: %v, %v", left, err)
	}
	var refused *client.Problem
	if err := <-stream; !errors.As(err, &refused) || refused.Code != client.Quarantined {
		t.Errorf("the stream ended with %v", err)
	}
	var ended *exec.ExitError
	if err := child.Wait(); !errors.As(err, &ended) || ended.ExitCode() != 128+int(syscall.SIGTERM) {
		t.Errorf("the child: %v", err)
	}
}

// missing fails for what integration/expected.d names and nobody ran.
func missing(t *testing.T, ran []string) {
	expected, err := os.ReadFile(source("integration", "expected.d", "surfaces.txt"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(expected)) {
		if line = strings.TrimSpace(line); !slices.Contains(ran, line) {
			t.Errorf("missing: %s", line)
		}
	}
}

// measured is what a row cost. The zero value: nothing could be measured.
type measured struct {
	process, again      string // median, in ms and µs
	processes, readings int    // that got the token
}

// measure runs a row so many times, and compares what arrives each time.
func (s surface) measure(ctx context.Context, socket string, processes, readings int, want string) (m measured, err error) {
	m.process, m.again = "-", "-"
	var took []time.Duration
	for range processes {
		start := time.Now()
		out, err := s.run(ctx, socket)
		took = append(took, time.Since(start))
		if err == nil {
			err = s.arrived(out, want)
		}
		if err != nil {
			return m, err
		}
		m.processes++
	}
	slices.Sort(took)
	m.process = fmt.Sprintf("%.1f", took[len(took)/2].Seconds()*1e3)
	if !s.again {
		return m, nil
	}
	out, err := s.run(ctx, socket, fmt.Sprintf("REPEAT=%d", readings))
	if err == nil {
		err = s.arrived(out, want)
	}
	var said said
	if err = errors.Join(err, json.Unmarshal(out, &said)); err != nil || said.Micros == 0 {
		return m, errors.Join(err, errors.New("it did not repeat"))
	}
	m.processes, m.readings, m.again = m.processes+1, readings, fmt.Sprintf("%.0f", said.Micros)
	return m, nil
}

func (s surface) run(ctx context.Context, socket string, env ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, s.command[0], s.command[1:]...)
	cmd.Env = append(append(append(os.Environ(), "CREDENTIAL_BROKER_SOCKET="+socket), s.env...), env...)
	if s.cgroup != nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(s.cgroup.Fd())}
	}
	cmd.WaitDelay = time.Second
	var problem bytes.Buffer
	cmd.Stderr = &problem
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %s", s.command[0], err, unlong(problem.String()))
	}
	return out, nil
}

// arrived says whether the token is in what a program has printed, which is
// itself told to nobody; or, where it has gone to the API, whether the API's
// answer to it is, which is the fingerprint.
func (s surface) arrived(out []byte, want string) error {
	for _, word := range strings.FieldsFunc(string(out), func(r rune) bool { return strings.ContainsRune(" \t\r\n\"'\\,:{}[]", r) }) {
		if s.upstream == "" && fingerprint(word) == want || s.upstream != "" && word == want {
			return nil
		}
	}
	var said said
	_ = json.Unmarshal(out, &said)
	return fmt.Errorf("the token is not in the %d bytes that it printed. %s %s", len(out), said.Code, unlong(said.Detail))
}

// unlong takes out whatever is long enough to be a token.
func unlong(text string) string {
	return regexp.MustCompile(`[A-Za-z0-9_+=-]{32,}`).ReplaceAllString(strings.TrimSpace(text), "[…]")
}

func fingerprint(token string) string {
	sum := sha256.Sum256([]byte(token))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// sightings are an API that tells each caller which token came with the call.
type sightings struct {
	mu     sync.Mutex
	tokens map[string][]string // fingerprints, by path
}

// ServeHTTP answers with one JSON object of strings, as the broker does for
// headers.
func (s *sightings) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	token, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	s.mu.Lock()
	s.tokens[r.URL.Path] = append(s.tokens[r.URL.Path], fingerprint(token))
	s.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]string{"seen": fingerprint(token)})
}

// only checks that a path got the token, and that often.
func (s *sightings) only(path, want string, times int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	got := s.tokens[path]
	if other := slices.IndexFunc(got, func(f string) bool { return f != want }); other >= 0 || len(got) != times {
		return fmt.Errorf("the API got %d calls, not %d, or one with another token", len(got), times)
	}
	return nil
}
