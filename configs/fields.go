package configs

import (
	"encoding"
	"reflect"
	"strings"

	"credentialbroker/internal/clock"

	"github.com/goccy/go-yaml/ast"
)

// A field is one key of a mapping that becomes a struct.
type field struct {
	name     string
	index    []int
	typ      reflect.Type
	required bool
	words    []string // all that it may be; empty: anything of its type
	hint     string   // what to do when it is missing
}

// fieldsOf lists the keys of t, those of inlined structs among them.
func (r *report) fieldsOf(t reflect.Type) []field {
	if fs, ok := r.fields[t]; ok {
		return fs
	}
	var fs []field
	for i := range t.NumField() {
		f := t.Field(i)
		name, options, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		switch {
		case options == "inline" || strings.HasSuffix(options, ",inline"):
			for _, in := range r.fieldsOf(f.Type) {
				in.index = append([]int{i}, in.index...)
				fs = append(fs, in)
			}
		case name == "" || name == "-" || !f.IsExported():
		default:
			one := field{name: name, index: []int{i}, typ: f.Type, hint: f.Tag.Get("hint")}
			switch check := f.Tag.Get("check"); check {
			case "":
			case "required":
				one.required = true
			default:
				one.words = strings.Split(check, "|")
			}
			fs = append(fs, one)
		}
	}
	r.fields[t] = fs
	return fs
}

// expected tells a person what t is written as.
func expected(t reflect.Type) string {
	switch {
	case t == reflect.TypeFor[clock.Duration]():
		return "a duration such as 30s, 15m, 12h or 400d"
	case reflect.PointerTo(t).Implements(reflect.TypeFor[encoding.TextUnmarshaler]()):
		return "one word"
	}
	switch t.Kind() { //nolint:exhaustive // the rest are numbers
	case reflect.Pointer:
		return expected(t.Elem())
	case reflect.Struct, reflect.Map:
		return "a mapping (key: value)"
	case reflect.Slice:
		if t.Elem().Kind() == reflect.Struct {
			return "a list of mappings (- key: value)"
		}
		return "a list ([a, b])"
	case reflect.String:
		return "text"
	case reflect.Bool:
		return "true or false"
	}
	if t.Kind() == reflect.Uint16 {
		return "a whole number up to 65535"
	}
	return "a whole number, 0 or more"
}

// kindOf tells a person what n is.
func (d *decoder) kindOf(n ast.Node) string {
	switch n.Type() { //nolint:exhaustive // the rest is text
	case ast.MappingType, ast.MappingValueType:
		return "a mapping"
	case ast.SequenceType:
		return "a list"
	case ast.NullType:
		return "empty"
	case ast.BoolType:
		return d.text(n)
	case ast.IntegerType, ast.FloatType:
		return "the number " + quoteIfLong(d.text(n))
	}
	return "text"
}

func isScalar(n ast.Node) bool {
	_, ok := n.(ast.ScalarNode)
	return ok && n.Type() != ast.TagType && n.Type() != ast.AnchorType && n.Type() != ast.AliasType
}

// scalarText is a scalar as it was written; empty for anything else.
func (d *decoder) text(n ast.Node) string {
	switch n := n.(type) {
	case *ast.StringNode:
		return d.re.written(n.Value)
	case *ast.LiteralNode:
		return d.re.written(n.Value.Value)
	case *ast.MappingKeyNode, *ast.MappingNode, *ast.SequenceNode, *ast.MappingValueNode, *ast.TagNode, *ast.AnchorNode, *ast.AliasNode, nil:
		return ""
	}
	if t := n.GetToken(); t != nil {
		return t.Value
	}
	return ""
}

// written undoes what parse does to ${NAME}: plain text inside of { } cannot
// hold braces, and yet ${CREDENTIALS_DIRECTORY} is to be written there too. So
// the parser is given $(NAME), of the same length; a text that really holds
// that is refused before.
func (p *patterns) written(s string) string { return p.stand.ReplaceAllString(s, "$${${1}}") }

func (p *patterns) unwritten(s string) string { return p.variable.ReplaceAllString(s, "$$(${1})") }

const credentialsVariable = "${CREDENTIALS_DIRECTORY}"

// expand replaces the one variable, where it may be used.
func (d *decoder) expand(n ast.Node, text, path string) string {
	if !strings.Contains(text, "${") {
		return text
	}
	rest, ok := strings.CutPrefix(text, credentialsVariable)
	var hint string
	switch {
	case !strings.HasSuffix(lastKey(path), "_file"):
		hint = "only keys that end in _file take " + credentialsVariable + "; write the value itself"
	case !ok || strings.Contains(rest, "${"):
		hint = "only " + credentialsVariable + " is replaced, and only at the start"
	case !strings.HasPrefix(rest, "/") || strings.Contains(rest, "/../"):
		hint = "a file name follows: " + credentialsVariable + "/NAME"
	case d.credentials == "" && d.offline:
		return text
	case d.credentials == "":
		hint = "systemd sets it for a unit with LoadCredential=; run by hand, set it to the directory or name the file"
		d.problem(d.at(n), path, "the environment variable CREDENTIALS_DIRECTORY is not set", "", hint)
		return text
	default:
		return d.credentials + rest
	}
	d.problem(d.at(n), path, "${…} is not replaced here", "", hint)
	return text
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

// lastKey is the key that path ends in, positions in lists aside.
func lastKey(path string) string {
	path = path[strings.LastIndex(path, ".")+1:]
	key, _, _ := strings.Cut(path, "[")
	return key
}

// subject names path in a sentence.
func subject(path string) string {
	parts := strings.Split(path, ".")
	switch {
	case path == "":
		return "the configuration"
	case len(parts) == 2 && parts[0] == "clients":
		return "the client " + quote(parts[1])
	case len(parts) == 2 && parts[0] == "providers":
		return "the provider " + quote(parts[1])
	}
	return path
}

func quoteIfLong(s string) string {
	if len(s) > 60 {
		return quote(s)
	}
	return s
}
