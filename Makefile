# The commands that a person types. PYTHON names the Python to use; each has a virtual environment of its own.
PYTHON ?= python3
VENV ?= .venv
# arguments to pytest
TESTS ?=
# arguments to benchmarks/bench.py
BENCH ?=

BENCH_VENVS = boto3 awscli c7n ansible matplotlib

.PHONY: demo demo-report test check faults soak bench bench-accounts bench-history requirements bench-requirements clean

# Two polls of an emulated account, appended to demo.log as cron does, the table that a person sees, and three questions.
demo: $(VENV)/ready
	@$(VENV)/bin/python tests/demo.py

# A page about a simulated month: demo-report.html.
demo-report: $(VENV)/ready
	@$(VENV)/bin/python tests/demo_report.py

# A file to a worker, the longest first: its tests share what takes long to make.
test: $(VENV)/ready
	$(VENV)/bin/python -m pytest -n auto --dist loadfile --no-loadscope-reorder $(TESTS)

check: $(VENV)/ready
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy
	PATH="$(VENV)/bin:$$PATH" ansible-lint --offline --profile production deploy.yaml

# What is recorded when something fails: plays every fault at every joint, and writes docs/faults.md.
faults: $(VENV)/ready
	$(VENV)/bin/python tests/faults.py

# Hundreds of polls, and years of them on a simulated clock: minutes to half an hour. Writes docs/soak.md.
soak: $(VENV)/ready
	$(VENV)/bin/python tests/soak.py > docs/soak.tmp
	mv docs/soak.tmp docs/soak.md
	@cat docs/soak.md

# main.py and other tools side by side: the table and the plot of benchmarks/README.md.
bench: $(BENCH_VENVS:%=.bench/%/ready)
	$(PYTHON) benchmarks/bench.py $(BENCH)

# What many accounts cost, for benchmarks/README.md. Takes five minutes.
bench-accounts: $(VENV)/ready
	$(VENV)/bin/python benchmarks/many_accounts.py

# What questions to a year's log cost, for benchmarks/README.md. Takes ten minutes, and 16 GB below .bench.
bench-history: $(VENV)/ready
	$(VENV)/bin/python benchmarks/questions.py

clustermanager.zip: inventory_manager.py main.py accounts.py history.py report.py
	rm -f $@
	zip -r $@ $^

# The function's code with all that it needs, for template.yaml. Byte for byte the same from the same: with one time for
# all files, in one order.
lambda.zip: lambda_function.py accounts.py inventory_manager.py requirements.txt $(VENV)/ready
	rm -rf $@ .lambda
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --no-compile --require-hashes --python-version 3.13 \
		--only-binary :all: --target .lambda -r requirements.txt
	cp lambda_function.py accounts.py inventory_manager.py .lambda
	rm -rf .lambda/bin
	find .lambda -exec chmod go+rX {} + -exec touch --date 2020-01-01T00:00:00Z {} +
	cd .lambda && find . -type f | LC_ALL=C sort | TZ=UTC zip -qX ../$@ -@
	rm -rf .lambda

# Pins the newest versions that pyproject.toml's ranges allow, with hashes, for every Python from 3.10 up.
COMPILE = UV_PYTHON_DOWNLOADS=never UV_CUSTOM_COMPILE_COMMAND="make $@" $(VENV)/bin/uv pip compile \
	--quiet --upgrade --universal --python-version 3.10 --generate-hashes --no-emit-index-url
# What history.py does without.
POLLER = boto3 botocore jmespath python-dateutil s3transfer six urllib3
requirements: $(VENV)/ready
	$(COMPILE) --extra terminal pyproject.toml --output-file requirements.txt
	$(COMPILE) --extra terminal --extra history $(POLLER:%=--no-emit-package %) pyproject.toml \
		--constraint requirements.txt --output-file requirements-history.txt
	$(COMPILE) --extra terminal --extra history pyproject.toml --group test \
		--constraint requirements.txt --constraint requirements-history.txt --output-file tests/requirements.txt

# The same for what main.py is measured with. Ansible's collection needs a boto3 that its package does not bring.
bench-requirements: $(VENV)/ready
	echo awscli | $(COMPILE) - --output-file benchmarks/requirements-awscli.txt
	echo c7n | $(COMPILE) - --output-file benchmarks/requirements-c7n.txt
	printf 'ansible\nboto3\n' | $(COMPILE) - --output-file benchmarks/requirements-ansible.txt
	echo matplotlib | $(COMPILE) - --output-file benchmarks/requirements-matplotlib.txt

clean:
	rm -rf $(VENV) .bench .lambda demo.log demo-report.html clustermanager.zip lambda.zip

$(VENV)/ready: tests/requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed: make PYTHON=...")'
	$(venv)

# The plain boto3 loop has the very packages of main.py.
.bench/boto3/ready: requirements.txt
	$(venv)
.bench/%/ready: benchmarks/requirements-%.txt
	$(venv)

define venv
$(PYTHON) -m venv --clear $(@D)
$(@D)/bin/pip install --quiet --disable-pip-version-check --require-hashes -r $<
@touch $@
endef
