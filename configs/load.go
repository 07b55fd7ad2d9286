package configs

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
)

// Rules of this file:
//   - a file is judged by what was opened, not by its name;
//   - a file that cannot be read or parsed hides its own mistakes only: all
//     others are still reported.

// Options say where a configuration is read.
type Options struct {
	// Credentials is the directory that ${CREDENTIALS_DIRECTORY} stands for.
	// Empty: using it is an error.
	Credentials string
	// Offline checks a configuration outside of the daemon's unit: with
	// Credentials empty the variable stays as it is written.
	Offline bool
	// Replace are files that are read in the place of others, which need not
	// be there: what the configuration would be. Its keys are broker.yaml, and
	// names in clients.d, as absolute paths. Mistakes name the key.
	Replace map[string]string
}

const (
	maxFile    = 1 << 20 // bytes
	maxNesting = 64
)

// Load reads file, and the *.yaml files of the directory clients.d beside it.
// Its error is of type Problems and lists every mistake of every file. A file
// that somebody else than root or the process's own user could have written is
// refused.
func Load(file string, o Options) (*Config, error) {
	r := newReport()
	c := &Config{file: file}
	read := func(name string) (*decoder, ast.Node) {
		d := &decoder{report: r, file: &source{name: name, from: name}, credentials: o.Credentials, offline: o.Offline}
		if in, ok := o.Replace[absolute(name)]; ok {
			d.file.from = in
		}
		return d, d.parse()
	}
	d, root := read(file)
	whole := root != nil
	if whole {
		d.value(root, reflect.ValueOf(c).Elem(), "")
	}
	for _, name := range clientFiles(file, o, r) {
		d, root := read(name)
		if root == nil {
			whole = false
			continue
		}
		var one clientFile
		d.value(root, reflect.ValueOf(&one).Elem(), "")
		if n := d.defined(root); n >= 0 && n != 1 {
			d.problem(d.at(root), "", fmt.Sprintf("the file defines %d clients", n), "one client a file, under clients:", "")
		}
		if c.Clients == nil {
			c.Clients = map[string]Client{}
		}
		maps.Copy(c.Clients, one.Clients)
	}
	c.validate(r, whole)
	if len(r.problems) > 0 {
		r.problems.sort()
		return nil, r.problems
	}
	return c, nil
}

// clientFile is a file of clients.d.
type clientFile struct {
	Clients map[string]Client `yaml:"clients" check:"required" hint:"a file of clients.d holds clients: with the one client that it defines"`
}

// clientFiles lists what of clients.d is to be read, in order. A name that
// looks as if it were meant and is not read is a mistake.
func clientFiles(file string, o Options, r *report) []string {
	dir := filepath.Join(filepath.Dir(file), "clients.d")
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		r.problem(place{file: &source{name: dir}}, "", "the directory cannot be read: "+reason(err), "", "")
	}
	var names []string
	for _, e := range entries {
		name := filepath.Join(dir, e.Name())
		switch ext := filepath.Ext(name); {
		case strings.HasPrefix(e.Name(), "."):
		case ext == ".yaml":
			names = append(names, name)
		case ext == ".yml" || ext == ".json":
			r.problem(place{file: &source{name: name}}, "", "the file is not read: only names that end in .yaml are", "", "rename it, or move it elsewhere")
		}
	}
	for name := range o.Replace {
		if absolute(name) == absolute(file) {
			continue
		}
		switch here := filepath.Join(dir, filepath.Base(name)); {
		case filepath.Dir(name) != absolute(dir) || filepath.Ext(name) != ".yaml" || strings.HasPrefix(filepath.Base(name), "."):
			r.problem(place{file: &source{name: name}}, "", "the file would not be read", file+", or a name in "+dir+" that ends in .yaml", "")
		case !slices.Contains(names, here):
			names = append(names, here)
		}
	}
	slices.Sort(names)
	return names
}

// absolute is how a file is named for comparisons.
func absolute(name string) string {
	if a, err := filepath.Abs(name); err == nil {
		return a
	}
	return name
}

// source is one file's text.
type source struct {
	name  string
	from  string // the file that is read
	lines []string
}

func (s *source) line(n int) string {
	if n < 1 || n > len(s.lines) {
		return ""
	}
	return s.lines[n-1]
}

// place is a place in a file; line 0: the file as a whole.
type place struct {
	file         *source
	line, column int
}

// parse reads and parses the decoder's file. It returns nil after a problem
// that leaves nothing to decode.
func (d *decoder) parse() ast.Node {
	data, p := readTrusted(d.file.from)
	if p != nil {
		d.problem(place{file: d.file}, "", p.message, "", p.hint)
		return nil
	}
	if !d.isText(data) {
		return nil
	}
	text := strings.ReplaceAll(string(data), "\r\n", "\n")
	d.file.lines = strings.Split(text, "\n")
	if !d.isSane() {
		return nil
	}
	f, err := parseYAML(d.re.unwritten(text))
	if err != nil {
		d.syntaxError(err)
		return nil
	}
	var docs []ast.Node
	for _, doc := range f.Docs {
		if doc.Body != nil {
			docs = append(docs, doc.Body)
		}
	}
	switch {
	case len(docs) == 0:
		d.problem(place{file: d.file}, "", "the file is empty", "a mapping (key: value)", "")
		return nil
	case len(docs) > 1 || len(f.Docs) > 1:
		at := place{d.file, 1, 1}
		if len(docs) > 1 {
			at = d.at(docs[1])
		}
		d.problem(at, "", "the file holds more than one YAML document", "", "remove the line --- or %…, or put each document into a file of its own")
		return nil
	}
	d.refuseSecrets(docs[0], "", "")
	if !d.plain(docs[0], "") {
		return nil
	}
	return docs[0]
}

// isText refuses what is not plain text before a parser sees it.
func (d *decoder) isText(data []byte) bool {
	whole := place{file: d.file}
	line := func(i int) place {
		return place{&source{name: d.file.name}, 1 + bytes.Count(data[:i], []byte("\n")), 1}
	}
	switch {
	case len(data) > maxFile:
		d.problem(whole, "", fmt.Sprintf("the file is larger than %d KiB", maxFile>>10), "", "move clients into clients.d, one file each")
		return false
	case bytes.HasPrefix(data, []byte("\xef\xbb\xbf")):
		d.problem(line(0), "", "the file begins with a byte order mark", "", "save it as UTF-8 without BOM")
		return false
	case !utf8.Valid(data):
		i := 0
		for i < len(data) {
			r, n := utf8.DecodeRune(data[i:])
			if r == utf8.RuneError && n == 1 {
				break
			}
			i += n
		}
		d.problem(line(i), "", "the line is not UTF-8", "", "save the file as UTF-8")
		return false
	}
	for i, c := range data {
		if c < ' ' && c != '\n' && c != '\t' && (c != '\r' || i+1 == len(data) || data[i+1] != '\n') {
			d.problem(line(i), "", fmt.Sprintf("the line holds the control character 0x%02x", c), "", "remove it; lines end in LF or CRLF")
			return false
		}
	}
	return true
}

// isSane refuses what a parser would choke on or misread.
func (d *decoder) isSane() bool {
	depth := 0
	for i, line := range d.file.lines {
		indent := line[:len(line)-len(strings.TrimLeft(line, " \t"))]
		if tab := strings.IndexByte(indent, '\t'); tab >= 0 && strings.TrimSpace(line) != "" {
			d.problem(place{d.file, i + 1, tab + 1}, "", "a tab indents this line", "spaces", "replace each tab by two spaces")
			return false
		}
		if at := d.re.stand.FindStringIndex(line); at != nil {
			d.problem(place{d.file, i + 1, 1 + utf8.RuneCountInString(line[:at[0]])}, "", "$(…) is not replaced", "", "write "+credentialsVariable+" with braces")
			return false
		}
		if strings.HasPrefix(strings.TrimSpace(line), "#") {
			continue
		}
		run := 0
		for j, c := range line {
			switch c {
			case '[', '{':
				depth++
			case ']', '}':
				depth = max(0, depth-1)
			case '-', '?', '!', '&', '*':
				run++
			case ' ':
			default:
				run = 0
			}
			if depth > maxNesting || run > maxNesting {
				d.problem(place{d.file, i + 1, 1 + utf8.RuneCountInString(line[:j])}, "", fmt.Sprintf("more than %d levels are nested here", maxNesting), "", "close the brackets")
				return false
			}
		}
	}
	return true
}

// parseYAML leaves repeated keys to the decoder, which names both places.
func parseYAML(text string) (*ast.File, error) {
	return parser.ParseBytes([]byte(text), 0, parser.AllowDuplicateMapKey())
}

func (d *decoder) syntaxError(err error) {
	at, message := place{file: d.file}, "this is not YAML"
	var e yaml.Error
	if errors.As(err, &e) {
		message = d.re.written(e.GetMessage())
		if t := e.GetToken(); t != nil && t.Position != nil {
			at = place{d.file, max(1, t.Position.Line), max(1, t.Position.Column)}
		}
	}
	line := d.file.line(at.line)
	hint := ""
	switch {
	case strings.Contains(message, "mapping value is not allowed"):
		hint = "put text that holds a colon and a space in quotes"
	case strings.Contains(message, "reserved character"):
		hint = "put text that begins with @ or ` in quotes"
	case strings.Contains(line, "{") && strings.Contains(line, "}}"):
		hint = "put text that holds braces in quotes inside of { }"
	}
	d.problem(at, "", "not valid YAML: "+message, "", hint)
}

// defined is how many clients root has; -1: none can be counted.
func (d *decoder) defined(root ast.Node) int {
	m, _ := root.(*ast.MappingNode)
	if m == nil {
		return -1
	}
	for _, pair := range m.Values {
		if clients, ok := pair.Value.(*ast.MappingNode); ok && d.text(pair.Key) == "clients" {
			return len(clients.Values)
		}
	}
	return -1
}

// reason is an error of the file system without the name that is said before.
func reason(err error) string {
	var p *fs.PathError
	if errors.As(err, &p) {
		err = p.Err
	}
	return err.Error()
}
