package api

import (
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"

	"credentialbroker/api/client"
)

type document struct {
	Paths      map[string]map[string]operation
	Components struct {
		Parameters map[string]struct{ Name, In string }
		Responses  map[string]any
		Headers    map[string]any
		Schemas    map[string]schema
	}
}

type operation struct {
	OperationID string `yaml:"operationId"`
	Tags        []string
	Summary     string
	Description string
	Parameters  []struct {
		Ref string `yaml:"$ref"`
	}
	RequestBody any `yaml:"requestBody"`
	Responses   map[string]any
}

type schema struct {
	Properties map[string]schema
	Required   []string
	Items      *schema
	Enum       []string
	Ref        string `yaml:"$ref"`
}

func readDocument(t *testing.T) document {
	t.Helper()
	text, err := os.ReadFile("openapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var d document
	if err := yaml.Unmarshal(text, &d); err != nil {
		t.Fatal(err)
	}
	return d
}

// Every route is in the document, on the socket that its tag names, and the
// other way round.
func TestDocumentHasTheRoutes(t *testing.T) {
	var served, described []string
	for tag, table := range map[string][]route{"consumer": consumerRoutes(), "admin": adminRoutes()} {
		for _, rt := range table {
			served = append(served, tag+" "+rt.method+" "+rt.path)
		}
	}
	for path, methods := range readDocument(t).Paths {
		for method, op := range methods {
			for _, tag := range op.Tags {
				described = append(described, tag+" "+strings.ToUpper(method)+" "+path)
			}
		}
	}
	slices.Sort(served)
	slices.Sort(described)
	if !slices.Equal(served, described) {
		t.Errorf("served:\n%s\ndescribed:\n%s", strings.Join(served, "\n"), strings.Join(described, "\n"))
	}
}

// References lead somewhere, and each role is named where it is needed.
func TestDocumentIsWhole(t *testing.T) {
	d := readDocument(t)
	for path, methods := range d.Paths {
		for method, op := range methods {
			for _, p := range op.Parameters {
				if name := strings.TrimPrefix(p.Ref, "#/components/parameters/"); d.Components.Parameters[name].Name != name {
					t.Errorf("%s %s: parameter %q is not there", method, path, p.Ref)
				}
			}
			for _, rt := range adminRoutes() {
				if rt.path == path && strings.EqualFold(rt.method, method) && rt.role != "" && !strings.Contains(op.Summary, "(role "+string(rt.role)+")") {
					t.Errorf("%s %s: the summary does not name the role %s", method, path, rt.role)
				}
			}
		}
	}
	text, err := os.ReadFile("openapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, ref := range strings.Split(string(text), "$ref: '#/components/")[1:] {
		ref, _, _ = strings.Cut(ref, "'")
		kind, name, _ := strings.Cut(ref, "/")
		_, known := d.Components.Schemas[name]
		there := map[string]bool{
			"schemas": known, "parameters": d.Components.Parameters[name].Name != "",
			"responses": d.Components.Responses[name] != nil, "headers": d.Components.Headers[name] != nil,
		}
		if !there[kind] {
			t.Errorf("%s leads nowhere", ref)
		}
	}
}

// The schemas have the members that the wire structs have.
func TestDocumentHasTheWireStructs(t *testing.T) {
	d := readDocument(t)
	for name, v := range map[string]any{"Problem": client.Problem{}, "Token": client.Token{}, "Rejection": client.Rejection{}, "Rejected": client.Rejected{},
		"Whoami": client.Whoami{}, "Readiness": client.Readiness{}, "Rotation": client.Rotation{}, "Outcome": client.Outcome{}, "Changes": client.Changes{},
		"Finding": client.Finding{}, "Status": client.Status{}, "StatusClient": client.StatusClient{}, "Denials": client.Denials{}, "Verdict": client.Verdict{},
		"User": client.User{}, "NewKey": client.NewKey{}, "Key": client.Key{}, "Intake": client.Intake{}, "KeyRotation": client.KeyRotation{}, "RotatedKey": client.RotatedKey{}, "LoginStart": client.LoginStart{}, "Login": client.Login{},
		"LoginFinish": client.LoginFinish{}, "Revocation": client.Revocation{}, "Declaration": client.Declaration{}, "Incidents": client.Incidents{},
		"IncidentClose": client.IncidentClose{}, "Whois": client.Whois{},
		"Scan": client.Scan{}, "ScanCandidates": client.ScanCandidates{}, "ScanMatches": client.ScanMatches{}} {
		compare(t, d, name, d.Components.Schemas[name], reflect.TypeOf(v))
	}
}

func compare(t *testing.T, d document, at string, s schema, typ reflect.Type) {
	t.Helper()
	if name := strings.TrimPrefix(s.Ref, "#/components/schemas/"); s.Ref != "" {
		s = d.Components.Schemas[name]
	}
	if typ.Kind() == reflect.Pointer {
		typ = typ.Elem()
	}
	switch {
	case typ.Kind() == reflect.Slice && s.Items != nil:
		compare(t, d, at+"[]", *s.Items, typ.Elem())
		return
	case typ.Kind() != reflect.Struct || typ.String() == "time.Time":
		return
	}
	members := map[string]bool{}
	for _, f := range reflect.VisibleFields(typ) {
		if f.Anonymous { // its fields are there
			continue
		}
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		members[name] = true
		p, ok := s.Properties[name]
		if !ok {
			t.Errorf("%s: the document lacks %s", at, name)
			continue
		}
		optional := strings.Contains(options, "omit")
		if slices.Contains(s.Required, name) == optional {
			t.Errorf("%s: %s is required: %v", at, name, !optional)
		}
		if f.Type != reflect.PointerTo(typ) { // a key in a key
			compare(t, d, at+"."+name, p, f.Type)
		}
	}
	for name := range s.Properties {
		if !members[name] {
			t.Errorf("%s: the document has %s, the struct has not", at, name)
		}
	}
}

// Every code has its status, its title and its place in the document.
func TestDocumentHasTheCodes(t *testing.T) {
	source, err := os.ReadFile("client/problem.go")
	if err != nil {
		t.Fatal(err)
	}
	var codes []string
	for _, line := range strings.Split(string(source), "\n") {
		if _, value, ok := strings.Cut(line, "Code = \""); ok {
			code, _, _ := strings.Cut(value, `"`)
			codes = append(codes, code)
		}
	}
	described := readDocument(t).Components.Schemas["Problem"].Properties["code"].Enum
	slices.Sort(codes)
	slices.Sort(described)
	if len(codes) < 15 || !slices.Equal(codes, described) {
		t.Errorf("codes %q, described %q", codes, described)
	}
	for _, c := range codes {
		if code := client.Code(c); code != client.Internal && (code.Status() == 500 || code.Title() == client.Internal.Title()) {
			t.Errorf("%s has no status or title of its own", c)
		}
	}
}
