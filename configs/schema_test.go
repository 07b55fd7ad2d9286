package configs

import (
	"bytes"
	"encoding"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"credentialbroker/internal/clock"
	"credentialbroker/providers"

	"github.com/goccy/go-yaml"
)

// The schema is made from what the decoder decodes by: yaml tags for the keys,
// doc comments for the descriptions, constants for the words.
//

const schemaFile = "broker.schema.json"

func TestSchemaIsUpToDate(t *testing.T) {
	m := &schemaMaker{t: t, report: newReport(), packages: map[string]*goPackage{}, defs: map[string]any{}}
	root := m.object(reflect.TypeFor[Config]())
	root["$schema"] = "https://json-schema.org/draft/2020-12/schema"
	root["title"] = "Configuration of the credential broker"
	root["$defs"] = m.defs
	var want bytes.Buffer
	e := json.NewEncoder(&want)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(root); err != nil {
		t.Fatal(err)
	}
	if update() {
		if err := os.WriteFile(schemaFile, want.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(schemaFile)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want.Bytes()) {
		t.Errorf("%s is out of date: go generate ./configs", schemaFile)
	}
}

type schemaMaker struct {
	t *testing.T
	*report
	packages map[string]*goPackage
	defs     map[string]any
}

type object = map[string]any

// of is the schema of a value of type t.
func (m *schemaMaker) of(t reflect.Type) object {
	switch {
	case t == reflect.TypeFor[clock.Duration]():
		return object{"type": "string", "pattern": `^(\d+d|(\d+(\.\d+)?(ns|us|µs|ms|s|m|h))+)$`}
	case t == reflect.TypeFor[providers.Field]():
		return object{"anyOf": []any{object{"type": "string"}, m.ref(t)}}
	case reflect.PointerTo(t).Implements(reflect.TypeFor[encoding.TextUnmarshaler]()):
		m.t.Errorf("%v has a text form of its own, which the schema does not know", t)
	}
	switch t.Kind() { //nolint:exhaustive // others are an error below
	case reflect.Pointer:
		return m.of(t.Elem())
	case reflect.Struct:
		return m.ref(t)
	case reflect.Map:
		return object{"type": "object", "additionalProperties": m.of(t.Elem())}
	case reflect.Slice:
		return object{"type": "array", "items": m.of(t.Elem())}
	case reflect.String:
		if words := m.pkg(t).words[t.Name()]; t.PkgPath() != "" && len(words) > 0 {
			return object{"enum": words}
		}
		return object{"type": []string{"string", "number"}} // user: 33
	case reflect.Bool:
		return object{"type": "boolean"}
	case reflect.Int, reflect.Int32, reflect.Int64, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return object{"type": "integer", "minimum": 0}
	}
	m.t.Errorf("the decoder knows no %v", t)
	return nil
}

func (m *schemaMaker) ref(t reflect.Type) object {
	name := filepath.Base(t.PkgPath()) + "." + t.Name()
	if m.defs[name] == nil {
		m.defs[name] = object{} // in progress
		m.defs[name] = m.object(t)
	}
	return object{"$ref": "#/$defs/" + name}
}

func (m *schemaMaker) object(t reflect.Type) object {
	properties, required := object{}, []string{}
	for _, f := range m.fieldsOf(t) {
		p := m.of(f.typ)
		if len(f.words) > 0 {
			p = object{"enum": f.words}
		}
		if f.required {
			required = append(required, f.name)
		}
		p["description"] = m.fieldDoc(t, f)
		if p["description"] == "" {
			m.t.Errorf("%v: the key %s has no comment", t, f.name)
		}
		properties[f.name] = p
	}
	o := object{"type": "object", "additionalProperties": false, "properties": properties}
	if len(required) > 0 {
		o["required"] = required
	}
	if t == reflect.TypeFor[Provider]() {
		o["anyOf"] = []object{{"minProperties": 1, "maxProperties": 1}, {"required": []string{"write"}, "minProperties": 2, "maxProperties": 2}}
	}
	if t == reflect.TypeFor[Alarm]() {
		o["anyOf"] = []object{{"required": []string{"command"}}, {"required": []string{"webhook"}}}
	}
	if t == reflect.TypeFor[Client]() {
		o["anyOf"] = []object{{"required": []string{"allow"}}, {"required": []string{"files"}}}
	}
	if d := m.pkg(t).types[t.Name()]; d != "" {
		o["description"] = d
	}
	return o
}

// fieldDoc is the comment of the Go field behind f.
func (m *schemaMaker) fieldDoc(t reflect.Type, f field) string {
	index := f.index
	for len(index) > 1 {
		t, index = t.Field(index[0]).Type, index[1:]
	}
	return m.pkg(t).fields[t.Name()+"."+t.Field(index[0]).Name]
}

// goPackage is what the source of a package says.
type goPackage struct {
	types, fields map[string]string
	words         map[string][]string
}

func (m *schemaMaker) pkg(t reflect.Type) *goPackage {
	path := t.PkgPath()
	if p := m.packages[path]; p != nil {
		return p
	}
	p := &goPackage{map[string]string{}, map[string]string{}, map[string][]string{}}
	m.packages[path] = p
	dir, ok := strings.CutPrefix(path, "credentialbroker/")
	if !ok {
		return p
	}
	files, err := filepath.Glob(filepath.Join("..", dir, "*.go"))
	if err != nil {
		m.t.Fatal(err)
	}
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") || strings.Contains(name, "_no_") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ParseComments)
		if err != nil {
			m.t.Fatal(err)
		}
		for _, d := range f.Decls {
			if g, ok := d.(*ast.GenDecl); ok {
				p.read(g)
			}
		}
	}
	return p
}

func (p *goPackage) read(g *ast.GenDecl) {
	for _, spec := range g.Specs {
		switch s := spec.(type) {
		case *ast.TypeSpec:
			doc := s.Doc.Text()
			if doc == "" {
				doc = g.Doc.Text()
			}
			p.types[s.Name.Name] = sentence(doc)
			st, ok := s.Type.(*ast.StructType)
			if !ok {
				continue
			}
			shared := ""
			for _, f := range st.Fields.List {
				doc := f.Doc.Text()
				if doc == "" {
					doc = f.Comment.Text()
				}
				if doc == "" {
					doc = shared // one comment above two fields
				}
				shared = doc
				for _, n := range f.Names {
					p.fields[s.Name.Name+"."+n.Name] = sentence(doc)
				}
			}
		case *ast.ValueSpec:
			typ, ok := s.Type.(*ast.Ident)
			if !ok || g.Tok != token.CONST {
				continue
			}
			for _, v := range s.Values {
				if lit, ok := v.(*ast.BasicLit); ok && lit.Kind == token.STRING {
					word, _ := strconv.Unquote(lit.Value)
					p.words[typ.Name] = append(p.words[typ.Name], word)
				}
			}
		}
	}
}

func sentence(doc string) string { return strings.Join(strings.Fields(doc), " ") }

// TestExamples loads every example, in both ways, and holds it against the
// schema, as an editor would.
func TestExamples(t *testing.T) {
	data, err := os.ReadFile(schemaFile)
	if err != nil {
		t.Fatal(err)
	}
	var root object
	if err := json.Unmarshal(data, &root); err != nil {
		t.Fatal(err)
	}
	kinds := map[string]bool{}
	examples, _ := filepath.Glob("examples/*/broker.yaml")
	for _, name := range examples {
		kind := filepath.Base(filepath.Dir(name))
		t.Run(kind, func(t *testing.T) {
			files := map[string]string{}
			all, _ := filepath.Glob(filepath.Dir(name) + "/clients.d/*.yaml")
			for _, n := range append(all, name) {
				text, err := os.ReadFile(n)
				if err != nil {
					t.Fatal(err)
				}
				rel, _ := filepath.Rel(filepath.Dir(name), n)
				files[rel] = string(text)
				var v any
				if err := yaml.Unmarshal(text, &v); err != nil {
					t.Fatalf("%s is not YAML to everybody: %v", n, err)
				}
				for _, p := range invalid(root, root, v, rel) {
					t.Error(p)
				}
			}
			// The adapters judge the credentials directory by the environment.
			t.Setenv("CREDENTIALS_DIRECTORY", "/run/credentials/test")
			c, err := load(t, files)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := Load(filepath.Join(write(t, files), "broker.yaml"), Options{Offline: true}); err != nil {
				t.Errorf("checked offline: %v", err)
			}
			for _, p := range c.Providers {
				kinds[p.Kind()] = true
				kinds["write"] = kinds["write"] || p.Write != ""
				if p.Kind() != kind {
					t.Errorf("the example of %s is about %s", kind, p.Kind())
				}
			}
			if c.Clients["vdab"].TokenEndpoint == "" {
				t.Error("the client has no token endpoint")
			}
		})
	}
	for _, f := range newReport().fieldsOf(reflect.TypeFor[Provider]()) {
		if !kinds[f.name] {
			t.Errorf("no example shows %s", f.name)
		}
	}
}

// TestSchemaRefuses makes sure that the schema and its reading here can refuse.
func TestSchemaRefuses(t *testing.T) {
	data, err := os.ReadFile(schemaFile)
	if err != nil {
		t.Fatal(err)
	}
	var root object
	if err := json.Unmarshal(data, &root); err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]string{
		"providers: {a: {}}":                                    "anyOf",
		"providers: {a: {systemd: {}, file: {path: /a}}}":       "anyOf",
		"providers: {a: {vault: {namespaces: x}}}":              "namespaces",
		"audit: {retention: 3 days}":                            "pattern",
		"clients: {a: {preset: x, secret: {}, owner: {}}}":      ".clients.a: anyOf",
		"clients: {a: {rotation: {kind: never}}}":               "enum",
		"clients: {a: {allow: [{surfaces: [tokens]}]}}":         "enum",
		"clients: {a: {secret: {fields: {client_id: [x]}}}}":    "anyOf",
		"alarm: {timeout: 3s}":                                  "anyOf",
		"limits: {connections: -1}":                             "minimum",
		"limits: {connections: many}":                           "integer",
		"state: true":                                           "string",
		"clients: {a: {keep_warm: 1}}":                          "boolean",
		"- 1":                                                   "object",
		"clients: {a: {allow: {user: x}}}":                      "array",
		"clients: {a: {secret: {fields: {client_id: {x: 1}}}}}": "anyOf",
	} {
		var v any
		if err := yaml.Unmarshal([]byte(text), &v); err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(invalid(root, root, v, ""), "\n"); !strings.Contains(got, want) {
			t.Errorf("%s: %q, want something about %s", text, got, want)
		}
	}
}

// invalid reads as much of JSON Schema as the schema uses; a keyword that it
// does not know is an error.
func invalid(root, s object, v any, at string) (wrong []string) {
	say := func(format string, args ...any) { wrong = append(wrong, at+": "+fmt.Sprintf(format, args...)) }
	for key, arg := range s {
		switch key {
		case "$schema", "$defs", "title", "description":
		case "$ref":
			name := strings.TrimPrefix(arg.(string), "#/$defs/")
			wrong = append(wrong, invalid(root, root["$defs"].(object)[name].(object), v, at)...)
		case "anyOf":
			if !slices.ContainsFunc(arg.([]any), func(one any) bool { return len(invalid(root, one.(object), v, at)) == 0 }) {
				say("anyOf")
			}
		case "type":
			if !typeIs(arg, v) {
				say("not of type %v", arg)
			}
		case "enum":
			if !slices.Contains(arg.([]any), v) {
				say("not in enum %v", arg)
			}
		case "pattern":
			if text, _ := v.(string); !regexp.MustCompile(arg.(string)).MatchString(text) {
				say("pattern %v", arg)
			}
		case "minimum":
			if n, ok := number(v); ok && n < arg.(float64) {
				say("minimum %v", arg)
			}
		case "items":
			list, _ := v.([]any)
			for i, item := range list {
				wrong = append(wrong, invalid(root, arg.(object), item, fmt.Sprintf("%s[%d]", at, i))...)
			}
		case "required":
			for _, name := range arg.([]any) {
				if m, ok := v.(object); ok && m[name.(string)] == nil {
					say("lacks %v", name)
				}
			}
		case "minProperties", "maxProperties":
			if m, ok := v.(object); ok && (key == "minProperties" && float64(len(m)) < arg.(float64) || key == "maxProperties" && float64(len(m)) > arg.(float64)) {
				say("%s: %d properties", key, len(m))
			}
		case "properties", "additionalProperties":
			if key == "additionalProperties" && s["properties"] != nil {
				continue
			}
			m, _ := v.(object)
			for name, item := range m {
				sub, more := arg.(object), object(nil)
				if key == "properties" {
					sub, _ = arg.(object)[name].(object)
					more, _ = s["additionalProperties"].(object)
				}
				switch {
				case sub != nil:
					wrong = append(wrong, invalid(root, sub, item, at+"."+name)...)
				case more == nil:
					say("no property %s", name)
				}
			}
		default:
			say("the test does not know the keyword %s", key)
		}
	}
	return wrong
}

func typeIs(want, v any) bool {
	if list, ok := want.([]any); ok {
		return slices.ContainsFunc(list, func(w any) bool { return typeIs(w, v) })
	}
	_, isNumber := number(v)
	switch v.(type) {
	case object:
		return want == "object"
	case []any:
		return want == "array"
	case string:
		return want == "string"
	case bool:
		return want == "boolean"
	}
	return isNumber && (want == "number" || want == "integer")
}

func number(v any) (float64, bool) {
	r := reflect.ValueOf(v)
	switch {
	case !r.IsValid():
		return 0, false
	case r.CanInt():
		return float64(r.Int()), true
	case r.CanUint():
		return float64(r.Uint()), true
	case r.CanFloat():
		return r.Float(), true
	}
	return 0, false
}
