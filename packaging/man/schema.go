package man

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// A schema is as much of JSON Schema as the configuration's uses.
type schema struct {
	Ref         string            `json:"$ref"`
	Defs        map[string]schema `json:"$defs"`
	Description string            `json:"description"`
	Type        any               `json:"type"` // a word, or a list of them
	Enum        []any             `json:"enum"`
	Pattern     string            `json:"pattern"`
	Properties  map[string]schema `json:"properties"`
	Required    []string          `json:"required"`
	Items       *schema           `json:"items"`
	AnyOf       []schema          `json:"anyOf"`
	Additional  json.RawMessage   `json:"additionalProperties"`
}

// Keys describes every key of a configuration, given its JSON Schema: one part
// for each mapping, with the places at which it stands.
func (p *Page) Keys(jsonSchema []byte) error {
	var root schema
	if err := json.Unmarshal(jsonSchema, &root); err != nil {
		return fmt.Errorf("read the schema: %w", err)
	}
	places, order := map[string][]string{}, []string{}
	walk(root, root.Defs, "", places, &order)
	p.Sub("broker.yaml")
	p.mapping(root, "")
	for _, name := range order {
		p.Sub(strings.Join(places[name], ", "))
		p.mapping(root.Defs[name], places[name][0])
	}
	return nil
}

// walk notes at which places each mapping stands, in the order of the file.
func walk(s schema, defs map[string]schema, at string, places map[string][]string, order *[]string) {
	for _, key := range slices.Sorted(maps.Keys(s.Properties)) {
		name, place := s.Properties[key].target(join(at, key))
		if name == "" {
			continue
		}
		known := places[name] != nil
		places[name] = append(places[name], place)
		if !known {
			*order = append(*order, name)
			walk(defs[name], defs, place, places, order)
		}
	}
}

func join(at, key string) string { return strings.TrimPrefix(at+"."+key, ".") }

// target is the mapping that a value is, holds by name or holds in a list; and
// how its place is written.
func (s schema) target(at string) (name, place string) {
	if s.Ref != "" {
		return strings.TrimPrefix(s.Ref, "#/$defs/"), at
	}
	for _, one := range s.AnyOf {
		if name, place := one.target(at); name != "" {
			return name, place
		}
	}
	if s.Items != nil {
		return s.Items.target(at + "[]")
	}
	if named, ok := s.named(); ok {
		return named.target(at + ".NAME")
	}
	return "", ""
}

// named is what a mapping with keys of one's own choice holds.
func (s schema) named() (schema, bool) {
	var n schema
	if len(s.Additional) == 0 || s.Additional[0] != '{' || json.Unmarshal(s.Additional, &n) != nil {
		return n, false
	}
	return n, true
}

func (p *Page) mapping(s schema, at string) {
	if s.Description != "" {
		p.Text(s.Description)
	}
	for _, key := range slices.Sorted(maps.Keys(s.Properties)) {
		v := s.Properties[key]
		kind := v.kind()
		if slices.Contains(s.Required, key) {
			kind += ", required"
		}
		text := v.Description
		if len(v.Enum) > 0 {
			text += " One of: " + words(v.Enum) + "."
		} else if v.Items != nil && len(v.Items.Enum) > 0 {
			text += " Any of: " + words(v.Items.Enum) + "."
		}
		if name, place := v.target(join(at, key)); name != "" {
			text += " See " + place + "."
		}
		p.Term(key, kind, text)
	}
}

func (s schema) kind() string {
	_, named := s.named()
	switch {
	case s.Items != nil:
		return "list"
	case s.Pattern != "":
		return "duration"
	case len(s.Enum) > 0:
		return "word"
	case len(s.AnyOf) > 0:
		return "text or mapping"
	case s.Ref != "":
		return "mapping"
	case named:
		return "mapping by name"
	case s.Type == "boolean":
		return "true or false"
	case s.Type == "integer":
		return "number"
	}
	return "text"
}

func words(list []any) string {
	var s []string
	for _, w := range list {
		s = append(s, fmt.Sprint(w))
	}
	return strings.Join(s, ", ")
}
