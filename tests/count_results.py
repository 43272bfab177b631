"""Prints "passed failed skipped" of the reports of a test run.

count_results.py gtest FOLDER    GoogleTest JSON reports and ctest.xml of one CTest run
count_results.py junit FILE      a JUnit report, such as pytest's
"""

import json
import pathlib
import sys
import xml.etree.ElementTree as ElementTree


def junit_cases(path):
    """(name, outcome) of every case; a report that is missing or broken counts as one failure."""
    try:
        root = ElementTree.parse(path).getroot()
    except (OSError, ElementTree.ParseError) as error:
        print(f"{path}: {error}", file=sys.stderr)
        return [(str(path), "failed")]
    cases = []
    for case in root.iter("testcase"):
        outcome = "passed"
        if case.find("failure") is not None or case.find("error") is not None or case.get("status") == "fail":
            outcome = "failed"
        elif case.find("skipped") is not None:
            outcome = "skipped"
        cases.append((case.get("name"), outcome))
    return cases


def gtest_cases(folder):
    """Cases of every program of the run; a failed program whose report shows no failure (a crash) counts as one."""
    outcomes = []
    for program, program_outcome in junit_cases(folder / "ctest.xml"):
        report = folder / f"{program}.json"
        cases = []
        if report.exists():
            for suite in json.loads(report.read_text())["testsuites"]:
                for case in suite["testsuite"]:
                    if case.get("failures"):
                        cases.append("failed")
                    elif case["result"] == "SKIPPED":
                        cases.append("skipped")
                    elif case["status"] == "RUN":
                        cases.append("passed")
        if program_outcome == "failed" and "failed" not in cases:
            cases.append("failed")
        outcomes += cases or [program_outcome]
    return outcomes


def main():
    kind, path = sys.argv[1], pathlib.Path(sys.argv[2])
    outcomes = gtest_cases(path) if kind == "gtest" else [outcome for _, outcome in junit_cases(path)]
    print(*(outcomes.count(name) for name in ("passed", "failed", "skipped")))


if __name__ == "__main__":
    main()
