package leak

import (
	"encoding/json"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

// schema describes a type as its JSON form has it: every key known, those
// without omitempty or omitzero required.
func schema(t reflect.Type) map[string]any {
	switch {
	case t == reflect.TypeFor[time.Time]():
		return map[string]any{"type": "string", "format": "date-time"}
	case t.Kind() == reflect.Pointer:
		return schema(t.Elem())
	case t.Kind() == reflect.Slice:
		return map[string]any{"type": "array", "items": schema(t.Elem())}
	case t.Kind() == reflect.Map:
		return map[string]any{"type": "object", "additionalProperties": schema(t.Elem())}
	case t.Kind() == reflect.Bool:
		return map[string]any{"type": "boolean"}
	case t.Kind() == reflect.String:
		s := map[string]any{"type": "string"}
		if values := words(t); values != nil {
			s["enum"] = values
		}
		return s
	case t.Kind() != reflect.Struct:
		return map[string]any{"type": "integer"}
	}
	properties, required := map[string]any{}, []string{}
	for n := range t.NumField() {
		f := t.Field(n)
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		properties[name] = schema(f.Type)
		if options == "" {
			required = append(required, name)
		}
	}
	return map[string]any{"type": "object", "properties": properties, "required": required, "additionalProperties": false}
}

func words(t reflect.Type) []any {
	switch t {
	case reflect.TypeFor[Severity]():
		return []any{Suspected, Confirmed}
	case reflect.TypeFor[Credential]():
		return []any{Token, ClientSecret, APIKey, PrivateKey, ManagerLogin, Host, Unknown}
	case reflect.TypeFor[PersonalData]():
		return []any{PersonalYes, PersonalNo, PersonalUnknown}
	case reflect.TypeFor[Policy]():
		return []any{KeepServing, Quarantine, Rotate}
	case reflect.TypeFor[Outcome]():
		return []any{Done, Failed, Pending, NotPossible}
	}
	return nil
}

// The published schema of the attachment is the struct's (UPDATE=1 writes it),
// and what is sent has no key beside it.
func TestSchema(t *testing.T) {
	s := schema(reflect.TypeFor[Report]())
	s["$schema"], s["title"] = "https://json-schema.org/draft/2020-12/schema", "A report of a leak by the credential broker"
	s["properties"].(map[string]any)["format"] = map[string]any{"const": "credential-broker-incident-report/1"}
	got, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	got = append(got, '\n')
	if os.Getenv("UPDATE") != "" {
		if err := os.WriteFile("report.schema.json", got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile("report.schema.json")
	if err != nil || string(want) != string(got) {
		t.Errorf("report.schema.json is out of date (UPDATE=1 writes it): %v", err)
	}
	messages, err := Compose(stage(Suspected, "by-request", "final"), sender(), []Language{Dutch})
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range messages {
		var v any
		if err := json.Unmarshal(parse(t, m.Data).report, &v); err != nil {
			t.Fatal(err)
		}
		valid(t, "report", s, v)
	}
}

// valid is as much of JSON Schema as the schema uses.
func valid(t *testing.T, path string, s map[string]any, v any) {
	t.Helper()
	switch v := v.(type) {
	case map[string]any:
		properties, _ := s["properties"].(map[string]any)
		for k := range v {
			p, ok := properties[k].(map[string]any)
			if !ok {
				t.Errorf("%s.%s is not in the schema", path, k)
				continue
			}
			valid(t, path+"."+k, p, v[k])
		}
		for _, k := range s["required"].([]string) {
			if _, ok := v[k]; !ok {
				t.Errorf("%s has no %s: %v", path, k, slices.Collect(maps.Keys(v)))
			}
		}
	case []any:
		for _, e := range v {
			valid(t, path+"[]", s["items"].(map[string]any), e)
		}
	case string:
		if s["type"] != "string" && s["const"] != v {
			t.Errorf("%s is the string %q, against %v", path, v, s)
		}
	}
}
